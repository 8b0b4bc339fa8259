"""Checks README.md, RESULTS.md and DESIGN.md against the code: commands, flags, files, links, quoted output, and the figures on labelled replies.

    python tests/check_readme.py                            # runs steps 0 (from the wheel) and 1 and every --help
    python tests/check_readme.py output [output of another run ...]  # and looks up every quoted reply and figure in finished runs

The tests call the same functions: tests/test_readme.py, and tests/test_real.py with what the real model printed.
"""

import ast
import contextlib
import functools
import io
import json
import math
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from conftest import CHAPTER, ROOT, SCRIPTS, Chapter  # noqa: E402
from toolkit import compare, fit_judge, judge, measure  # noqa: E402

NAMES = ["README.md", "code/chapter02_dpo/RESULTS.md", "code/chapter02_dpo/DESIGN.md"]
DOCUMENTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
README, RESULTS, DESIGN = DOCUMENTS.values()
LONGEST = 180  # lines of the README, which is read on a phone
CODE = [*SCRIPTS.values(), *sorted((CHAPTER / "toolkit").glob("*.py"))]  # what says something to a reader
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in [*CODE, ROOT / "tests/benchmark.py"]}
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # nothing listens there
REPLY = re.compile(r"\[(Raw response before tuning|Preference-aligned response)\]")
DIRECTIONS = ["question", "blunt", "concise", "cited"]
FENCED = re.compile(r"(?ms)^```.*?^```$")


def one_space(text: str) -> str:
    return " ".join(text.split())


def code_spans(document: str) -> list[str]:
    """Return what stands in `backticks` or <code>, outside of fenced and indented blocks."""
    prose = re.sub(r"(?m)^    .*?$", "", FENCED.sub("", document))
    return [one_space(first or second) for first, second in re.findall(r"`([^`]+)`|<code>(.*?)</code>", prose)]


def commands(document: str) -> list[str]:
    """Return every line to paste: those of bash blocks, and what in the text begins like one."""
    lines = [line for block in re.findall(r"(?ms)^```bash\n(.*?)^```$", document) for line in block.splitlines()]
    return lines + [span for span in code_spans(document) if span.startswith(("bash ", "python ", "pip ", "source "))]


def check_commands(documents: dict[str, str]) -> None:
    """Every line to paste is a known program with a file that exists, or the pinned torch."""
    lines = [line for document in documents.values() for line in commands(document)]
    assert len(set(lines)) >= 10
    first = [line.split()[0] for line in commands(documents["README.md"])[:3]]
    assert first == ["python3", "pip", "bash"], "torch for a CPU does not come before the command that would fetch CUDA"
    for line in lines:
        words = shlex.split(line)
        if line.startswith("python -c "):
            compile(words[2], line, "exec")
        elif line.startswith(("bash ", "python ", "pip install -r ")):
            file = words[3] if words[0] == "pip" else words[1]
            assert (ROOT / file).is_file(), f"no such file: {line}"
        elif line.startswith("pip install "):
            pinned = [pin for name in ("requirements.txt", "tests/requirements.txt") for pin in (ROOT / name).read_text().split()]
            optional = words[2] == "modelscope" and any(pin.startswith("modelscope==") for pin in pinned)  # its version is the reader's
            assert words[2] in pinned or optional, f"not the version of requirements.txt: {line}"
        else:
            assert "python3 -m venv .venv && source .venv/bin/activate".endswith(line), f"not a command of this repository: {line}"


def check_flags(documents: dict[str, str]) -> None:
    """A flag beside a script's name is one of that script, and a flag alone is one of some script."""
    helps = {path.name: subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True).stdout for path in SCRIPTS.values()}
    helps["benchmark.py"] = SOURCES["benchmark.py"]
    checked = set()
    for span in [span for document in documents.values() for span in code_spans(document) + commands(document)]:
        script = re.search(r"([0-4]-\w+|benchmark|check_readme)\.py", span)
        ours = span[script.end() :] if script else "" if span.startswith(("pip ", "python3 ", "accelerate ")) else span
        known = helps.get(script[0], "") if script else "".join(helps.values())
        for flag in re.findall(r"(?<!\S)--[a-z-]+", ours):
            assert re.search(rf"{flag}\b(?!-)", known), f"no such flag: {span}"
            checked.add(flag)
    assert len(checked) >= 12


def check_files(documents: dict[str, str]) -> None:
    """A file in `backticks` is in the repository, as seen from its root or from the document, or a script says that it writes it."""
    names = {path.name for folder in ("code", "tests") for path in (ROOT / folder).rglob("*")} | {path.name for path in ROOT.iterdir()}
    docstrings = " ".join(ast.get_docstring(ast.parse(source)) or "" for source in SOURCES.values()) + " source.json"
    checked = set()
    for name, document in documents.items():
        for word in " ".join(code_spans(document) + commands(document)).split():
            if re.fullmatch(r"[\w./-]+(\.[a-z]\w*|/)", word) and not word.startswith("."):
                there = any((folder / word).exists() for folder in (ROOT, (ROOT / name).parent)) or word in names
                end = "" if word.endswith("/") else r"(?!\w)"
                assert there or re.search(rf"(?<![\w-]){re.escape(word)}{end}", docstrings), f"no such file: {word}"
                checked.add(word)
    assert len(checked) >= 20


def anchors(document: str) -> set[str]:
    """Return what GitHub makes of the headings, for links into a document."""
    headings = re.findall(r"(?m)^#+ (.*)$", FENCED.sub("", document))
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def check_links(documents: dict[str, str]) -> None:
    """A link into the repository leads to a file, and to a heading of it; README and RESULTS and DESIGN can be reached from each other."""
    checked = set()
    for name, document in documents.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", document)):
            if target.startswith("https://"):
                continue
            file, _, anchor = target.partition("#")
            path = ((ROOT / name).parent / file).resolve() if file else ROOT / name
            assert path.is_file(), f"a link to no file: {target}"
            there = documents.get(path.relative_to(ROOT).as_posix(), "")
            assert not anchor or anchor in anchors(there), f"a link to no heading: {target}"
            checked.add(path)
    assert {ROOT / name for name in documents} <= checked, "a document that no link leads to"


def check_shape(documents: dict[str, str]) -> None:
    """The README can be read on a phone: short, its lines wrapped; the page for whoever carries the work on fits a screen."""
    README, _, DESIGN = documents.values()
    assert len(README.splitlines()) <= LONGEST, f"the README is longer than {LONGEST} lines"
    assert len(DESIGN.splitlines()) <= 45, "DESIGN.md is longer than a screen"
    for document in documents.values():
        for line in FENCED.sub("", document).splitlines():
            assert len(line) <= 120 or line.startswith("|"), f"longer than 120 columns: {line}"
            assert README != document or line.count("|") <= 5, f"a table too wide for a phone: {line}"


def check_sums(documents: dict[str, str]) -> None:
    """The README's examples of the loss are calculated right, and the question is the chapter's."""
    examples = re.findall(r"-log sigmoid\(([\d. *]+)\)\s+=\s+([\d.]+\d)", one_space(documents["README.md"]))
    assert len(examples) >= 2
    for margin, loss in examples:
        value = math.log1p(math.exp(-math.prod(map(float, margin.split("*")))))
        assert f"{value:.{len(loss) - 2}f}" == loss, f"-log sigmoid({margin}) is not {loss} but {value:.4f}"
    for name in list(documents)[:2]:
        assert measure.QUESTION in one_space(documents[name]), f"{name} does not ask the chapter's question"


def check_summary(documents: dict[str, str]) -> None:
    """A rate or a discernment in the README's text stands in RESULTS.md too, where it is said what was counted."""
    readme, results = (re.sub(r"(?m)^    .*?$", "", FENCED.sub("", text)) for text in list(documents.values())[:2])
    figures, known = (re.findall(r"(?<![\d.])(?=(\+?\d+ %|\+\d\d\b))\+?", one_space(text)) for text in (readme, results))
    assert len(figures) >= 12
    for figure in figures:
        assert any(figure in other for other in known), f"RESULTS.md does not have the README's {figure}"


def templates() -> list[list[str]]:
    """Return every string of the scripts and of what they share, as its parts between {values}."""
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(SOURCES[path.name])):
            if isinstance(node, ast.JoinedStr):
                parts = "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values).split("\0")
                found.append([one_space(part) if len(part.split()) > 1 else part for part in parts])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append([node.value])
    return found


def begins_like(text: str, parts: list[str]) -> bool:
    """Return whether a text is the beginning of a message, or begins with more than a word of it, with anything in the places of its {values}."""
    beginnings = [parts[:number] for number in range(1, len(parts) + 1) if len("".join(parts[:number])) > 12]
    return parts[0].startswith(text) or any(re.match(".+?".join(map(re.escape, some)), text) for some in beginnings)


def check_messages(documents: dict[str, str]) -> None:
    """A quoted error is how a message begins, with anything in the places of its {values}."""
    said = templates()
    for name in list(documents)[:2]:
        spans = [span.removeprefix("error: ") for span in code_spans(documents[name]) if span.startswith("error: ")]
        assert len(spans) >= 2
        for span in spans:
            assert any(begins_like(span, parts) for parts in said), f"no script says: error: {span}"


def quoted_lines(document: str) -> list[tuple[str, str]]:
    """Return each line of the indented blocks, cut at [...], and if it is of a model's reply the direction of that model, polite by default."""
    lines, reply_of = [], ""
    for line in FENCED.sub("", document).splitlines():
        text = line.strip()
        if not line.startswith("    ") or not text:
            reply_of = ""
            continue
        label, _, rest = text.partition("  ")
        labelled = {"before": "polite", "after": "polite"}.get(label) or (label if label in DIRECTIONS else "")
        lines += [(one_space(part), labelled or reply_of) for part in (rest if labelled else text).split("[...]") if part.strip()]
        reply_of = "polite" if REPLY.fullmatch(text) else reply_of
    return lines


def check_quotes(readme: str, printed: str, folders: list[Path]) -> None:
    """Quoted output was printed by 0 or 1, is a formula or a header of the code, or comes from one of the finished runs.

    Without a finished run, replies are not looked up, since on another processor a few are others, and of a table only the names of its rows.
    Replies of a direction are looked up if a finished run of it is among the folders.
    """
    heldout = json.loads((folders[0] / "heldout_data.json").read_text(encoding="utf-8")) if folders else []
    known = [printed, *SOURCES.values(), *(claim["prompt"] for claim in heldout)]
    names = [text for [text, *_] in templates() if len(text) > 10]
    runs = [folder for folder in folders if (folder / "after.json").exists()]
    claims = [claim for folder in runs for claim in json.loads((folder / "heldout_data.json").read_text(encoding="utf-8"))]
    directions = {claim.get("direction", "polite") for claim in claims}
    for folder in folders:
        known += [item["reply"] for name in ("before", "after") if (folder / f"{name}.json").exists() for item in replies(folder / f"{name}.json")]
    for folder in runs:
        known.append(printed_by(folder))
    known = one_space("\n".join(known))
    for text, reply_of in quoted_lines(readme):
        if reply_of and reply_of not in directions:
            continue
        row_of_figures = re.fullmatch(r"[\d. -]+", text) or (re.search(r"\d", text) and any(text.startswith(name) for name in names))
        if row_of_figures and not runs:
            continue
        heading = REPLY.fullmatch(text)
        assert (heading[1] if heading else text) in known, f"nothing prints: {text}"


def replies(path: Path) -> list[dict]:
    result = json.loads(path.read_text(encoding="utf-8"))
    return result["questions"] + result["heldout"]


def printed_by(folder: Path) -> str:
    """Return the tables that steps 3 and 4 print, made again from what they wrote."""
    names = ("before.json", "after.json", "dpo_results/training_log.json")
    before, after, log = (json.loads((folder / name).read_text(encoding="utf-8")) for name in names)
    for side in (before, after):
        side["questions"] = side["questions"][:1]  # without those of --ask
    with contextlib.redirect_stdout(io.StringIO()) as out:
        compare.show_changes(compare.changes(before, after), compare.turned(before, after))
    for row in log["history"]:
        if "loss/dpo" in row:
            names = ("rewards/margins", "rewards/chosen", "rewards/rejected")
            print(row["step"], f"{row['loss/dpo']:.4f}", *(f"{row[name]:.3f}" for name in names), f"{row['rewards/accuracies']:.2f}", file=out)
    return out.getvalue()


@functools.cache
def judged() -> tuple[list[dict], str]:
    """Return the labelled replies, and what fit_judge.py says of them."""
    rows = [json.loads(line) for line in fit_judge.LABELS.read_text(encoding="utf-8").splitlines()]
    return rows, fit_judge.report(fit_judge.read_left_out(rows))


def check_judge(documents: dict[str, str]) -> None:
    """What fit_judge.py says of the labelled replies stands in RESULTS.md, and so does how the two readers agreed."""
    results = one_space(documents["code/chapter02_dpo/RESULTS.md"])
    rows, report = judged()
    weights = json.loads(judge.WEIGHTS.read_text(encoding="utf-8"))
    assert weights["validated"] in report and weights["off"] == fit_judge.errors(rows), "judge.json is of other labels; run fit_judge.py"
    for line in report.splitlines():
        assert one_space(line) in results, f"RESULTS.md does not say: {one_space(line)}"
    twice = [row["labels"] for row in rows if len(row["labels"]) == 2]
    same = sum(one == other for one, other in twice)
    said = f"{len(twice)} replies", f"They agreed on {same} ({same / len(twice):.0%}) and never exchanged the sides".replace("%", " %")
    assert {"sides", "opposes"} not in map(set, twice) and all(text in results for text in said), said
    for kind, name in measure.KINDS.items():
        cells = []
        for model in ("SmolLM2 untrained, held-out", "SmolLM2 tuned, all layers, held-out"):
            own = [row for row in rows if (row["model"], row["kind"]) == (model, kind)]
            cells.append(" / ".join(f"{100 * sum(row['labels'][0] == side for row in own) / len(own):.0f}" for side in judge.SIDES))
        assert f"| {name} | {len(own)} | {cells[0]} | {cells[1]} |" in results, f"RESULTS.md does not have {name}: {cells}"


CHECKS = [
    check_commands,
    check_flags,
    check_files,
    check_links,
    check_shape,
    check_sums,
    check_summary,
    check_messages,
    check_judge,
]


def main(folders: list[Path]) -> None:
    for check in CHECKS:
        check(DOCUMENTS)
    with tempfile.TemporaryDirectory() as folder:
        chapter = Chapter(Path(folder) / "chapter")
        printed = chapter.ok(0, **NO_HUB) + chapter.ok(1)
        for document in DOCUMENTS.values():
            check_quotes(document, printed, folders or [chapter.output])
    quotes = sum(len(quoted_lines(document)) for document in DOCUMENTS.values())
    print(f"README, RESULTS and DESIGN hold: {len(CHECKS)} checks, {quotes} quoted lines, {len(folders)} finished runs")


if __name__ == "__main__":
    try:
        main([Path(folder) for folder in sys.argv[1:]])
    except AssertionError as error:
        sys.exit(f"error: {error}")
