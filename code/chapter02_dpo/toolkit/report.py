"""The page output/report.html: the measures as a picture, the curves, and every reply before and after. It needs no network."""

import base64
import difflib
import json
import shlex
from pathlib import Path

from toolkit.compare import Change, last_heldout, pairs_by_hand, repeats, verdict
from toolkit.console import printable
from toolkit.curves import NOTICE, PANELS, svg
from toolkit.files import write
from toolkit.judge import WEIGHTS
from toolkit.measure import KINDS, asked, interval
from toolkit.models import model_flag
from toolkit.paths import REPORT

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def compared(old: str, new: str) -> tuple[list, list]:
    """Return two replies, each as (words, whether only this one has them), in order."""
    sides = [], []
    words = old.split(), new.split()
    for kind, a, b, c, d in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for side, part in zip(sides, (words[0][a:b], words[1][c:d])):
            side.append((printable(" ".join(part)), kind != "equal"))
    return sides


def forest(row: Change) -> dict:
    """Return what the page shows of a change: the texts, and where in a picture 100 wide its two means and their 95 % intervals lie."""
    both = {"before": row.before, "after": row.after}
    intervals = {when: interval(measure) for when, measure in both.items()}
    unit, show = row.after.unit, row.after.show
    left, right = (0, 1) if unit == "share" else (-1, 1) if unit == "points" else (0, max(0.01, *(high for _, high in intervals.values())))
    lines = {}
    for when, (low, high) in intervals.items():
        at = [round(100 * (min(max(value, left), right) - left) / (right - left), 1) for value in (low, both[when].mean(), high)]
        lines[when] = {"at": at, "text": f"{show(both[when].mean())}, interval {show(low)} to {show(high)}"}
    scale = show(left), show(right)
    return {
        "name": row.after.name,
        "texts": row.texts(),
        "verdict": row.verdict,
        "p": row.p,
        "better": row.after.better,
        "scale": scale,
        "lines": lines,
    }


def replies(before: dict, after: dict) -> list[dict]:
    """Return every question and claim with both replies, and the side that the judge found each to take."""
    items = []
    for old, new in zip(asked(before), asked(after)):
        old_words, new_words = compared(old["reply"], new["reply"])
        items.append({"prompt": printable(new["prompt"]), "kind": new.get("kind"), "before": old_words, "after": new_words})
        items[-1]["sides"] = [run["side"] for run in (old, new) if "side" in run]
    return items


def flags_of(settings: dict) -> str:
    """Return the flags that give step 3 these settings."""
    given = {name: value for name, value in settings.items() if value is not None and value is not False and name != "resume"}
    return " ".join(f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}") for name, value in given.items())


def write_report(before: dict, after: dict, rows: list[Change], turned: tuple[int, int], log: dict, changed: list[str]) -> None:
    """Write output/report.html. The template escapes every value: replies stay text, whatever they hold.

    turned counts the right claims affirmed before and opposed after; changed names the files of pairs that are not those trained on any more.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template(TEMPLATE.name).render(
        verdict=verdict(rows, turned),
        rows=list(map(forest, rows)),
        sides={row.after.name: row for row in rows},
        repeats=repeats(log),
        by_hand=pairs_by_hand(log),
        items=replies(before, after),
        kinds=KINDS,
        notice=NOTICE,
        curves={title: base64.b64encode(svg(title, log["history"])).decode() for title in PANELS},
        last=last_heldout(log),
        model=model_flag(after["base_model"]),
        flags=flags_of(log["settings"]),
        log=log,
        after=after,
        changed=changed,
        judge=json.loads(WEIGHTS.read_text(encoding="utf-8"))["validated"],
    )
    write(REPORT, page)
