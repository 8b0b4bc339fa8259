"""The page output/report.html: the measures as a picture, the curves, and every reply before and after. It needs no network."""

import base64
import difflib
import shlex
from pathlib import Path

from toolkit.console import printable
from toolkit.curves import NOTICE, PANELS, svg
from toolkit.files import write
from toolkit.measure import in_words, is_share, last_heldout, own_interval, show, verdict
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


def forest(row: dict) -> dict:
    """Return what the page shows of a row of changes(): the texts, and where in a picture 100 wide its means and 95 % intervals lie."""
    intervals = {name: own_interval(values) for name, values in row["values"].items()}
    left, right = (
        (0, 1)
        if is_share(row["name"])
        else (-1, 1)
        if row["name"].startswith("discernment")
        else (0, max(0.01, *(high for _, high in intervals.values())))
    )
    lines = {}
    for name, (low, high) in intervals.items():
        at = [round(100 * (min(max(value, left), right) - left) / (right - left), 1) for value in (low, row[name], high)]
        lines[name] = {"at": at, "text": f"{show(row['name'], row[name])}, interval {show(row['name'], low)} to {show(row['name'], high)}"}
    return row | {"texts": in_words(row), "scale": (show(row["name"], left), show(row["name"], right)), "lines": lines}


def replies(before: dict, after: dict) -> list[dict]:
    """Return every question and claim with both replies, and how each takes the user's side."""
    items = []
    for old, new in zip(before["questions"] + before["heldout"], after["questions"] + after["heldout"]):
        old_words, new_words = compared(old["reply"], new["reply"])
        items.append({"prompt": printable(new["prompt"]), "right": new.get("user_is_right"), "before": old_words, "after": new_words})
        items[-1]["agreement"] = [run["agreement"] for run in (old, new) if "agreement" in run]
    return items


def flags_of(settings: dict) -> str:
    """Return the flags that give step 3 these settings."""
    given = {name: value for name, value in settings.items() if value is not None and value is not False and name != "resume"}
    return " ".join(f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}") for name, value in given.items())


def write_report(before: dict, after: dict, rows: list[dict], log: dict, direction: str) -> None:
    """Write output/report.html. The template escapes every value: replies stay text, whatever they hold."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template(TEMPLATE.name).render(
        verdict=verdict(rows),
        rows=list(map(forest, rows)),
        items=replies(before, after),
        notice=NOTICE,
        curves={title: base64.b64encode(svg(title, log["history"])).decode() for title in PANELS},
        last=last_heldout(log["history"]),
        model=model_flag(after["base_model"]),
        flags=flags_of(log["settings"]),
        log=log,
        after=after,
        direction=direction,
    )
    write(REPORT, page)
