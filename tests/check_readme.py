"""Checks the README against the code: its commands, flags, files, quoted output and the figures on labelled replies.

    python tests/check_readme.py                            # runs steps 0 (from the wheel) and 1 and every --help
    python tests/check_readme.py output [output of another run ...]  # and looks up every quoted reply and figure in finished runs

The tests call the same functions: tests/test_readme.py, and tests/test_real.py with what the real model printed.
"""

import ast
import contextlib
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from conftest import ROOT, SCRIPTS, Chapter  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in [*SCRIPTS.values(), ROOT / "tests/benchmark.py"]}
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # nothing listens there
REPLY = re.compile(r"\[(Raw response before tuning|Preference-aligned response)\]")
STEP_4 = runpy.run_path(str(SCRIPTS["4"]))
DIRECTIONS = ["question", "blunt", "concise", "cited"]


def one_space(text: str) -> str:
    return " ".join(text.split())


def code_spans(readme: str) -> list[str]:
    """Return what stands in `backticks`, outside of fenced and indented blocks."""
    return [one_space(span) for span in re.findall(r"`([^`]+)`", re.sub(r"(?ms)^```.*?^```$|^    .*?$", "", readme))]


def commands(readme: str) -> list[str]:
    return [line for block in re.findall(r"(?ms)^```bash\n(.*?)^```$", readme) for line in block.splitlines()]


def check_commands(readme: str) -> None:
    """Every line to paste is a known program with a file that exists, or the pinned torch."""
    assert len(commands(readme)) >= 10
    for line in commands(readme):
        if line.startswith("python -c "):
            compile(shlex.split(line)[2], line, "exec")
        elif line.startswith(("bash ", "python ")):
            assert (ROOT / line.split()[1]).is_file(), f"no such file: {line}"
        elif line.startswith("pip install "):
            assert line.split()[2] in (ROOT / "requirements.txt").read_text().split(), f"not the version of requirements.txt: {line}"
        else:
            assert line == "python3 -m venv .venv && source .venv/bin/activate", f"not a command of this repository: {line}"


def check_flags(readme: str) -> None:
    """A flag beside a script's name is one of that script, and a flag alone is one of some script."""
    helps = {path.name: subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True).stdout for path in SCRIPTS.values()}
    helps["benchmark.py"] = SOURCES["benchmark.py"]
    checked = set()
    for span in code_spans(readme) + commands(readme):
        script = re.search(r"([0-4]-\w+|benchmark|check_readme)\.py", span)
        ours = span[script.end() :] if script else "" if span.startswith(("pip ", "python3 ", "accelerate ")) else span
        known = helps.get(script[0], "") if script else "".join(helps.values())
        for flag in re.findall(r"(?<!\S)--[a-z-]+", ours):
            assert re.search(rf"{flag}\b(?!-)", known), f"no such flag: {span}"
            checked.add(flag)
    assert len(checked) >= 12


def check_files(readme: str) -> None:
    """A file in `backticks` is in the repository, or a script says that it writes it."""
    names = {path.name for path in ROOT.rglob("*") if "output" not in path.parts}
    docstrings = " ".join(source.split('"""')[1] for source in SOURCES.values()) + " source.json"
    checked = set()
    for word in " ".join(code_spans(readme) + commands(readme)).split():
        if re.fullmatch(r"[\w./-]+(\.\w+|/)", word) and not word.startswith("."):
            there = (ROOT / word).exists() or word in names or re.search(rf"(?<![\w-]){re.escape(word)}(?!\w)", docstrings)
            assert there, f"no such file: {word}"
            checked.add(word)
    assert len(checked) >= 20


def templates() -> list[list[str]]:
    """Return every string of the scripts as its parts between {values}."""
    found = []
    for path in SCRIPTS.values():
        for node in ast.walk(ast.parse(SOURCES[path.name])):
            if isinstance(node, ast.JoinedStr):
                parts = "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values).split("\0")
                found.append([one_space(part) if len(part.split()) > 1 else part for part in parts])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append([node.value])
    return found


def check_messages(readme: str) -> None:
    """A quoted error is how a message of a script begins, with anything in the places of its {values}."""
    spans = [span.removeprefix("error: ") for span in code_spans(readme) if span.startswith("error: ")]
    assert len(spans) >= 4
    for span in spans:
        for parts in templates():
            beginnings = (parts[:number] for number in range(1, len(parts) + 1))
            if parts[0].startswith(span) or any(len("".join(some)) > 12 and re.match(".+?".join(map(re.escape, some)), span) for some in beginnings):
                break
        else:
            raise AssertionError(f"no script says: error: {span}")


def quoted_lines(readme: str) -> list[tuple[str, bool]]:
    """Return each line of the indented blocks, cut at [...], and whether it is of a model's reply."""
    lines, in_reply = [], False
    for line in re.sub(r"(?ms)^```.*?^```$", "", readme).splitlines():
        text = line.strip()
        if not line.startswith("    ") or not text:
            in_reply = False
            continue
        label, _, rest = text.partition("  ")
        labelled = label in ("before", "after", *DIRECTIONS)
        lines += [(one_space(part), in_reply or labelled) for part in (rest if labelled else text).split("[...]") if part.strip()]
        in_reply = in_reply or bool(REPLY.fullmatch(text))
    return lines


def check_quotes(readme: str, printed: str, folders: list[Path]) -> None:
    """Quoted output was printed by 0 or 1, is a formula or a header of the scripts, or comes from one of the finished runs.

    Without a finished run, replies are not looked up, since on another processor a few are others, and of a table only the names of its rows.
    """
    heldout = json.loads((folders[0] / "heldout_data.json").read_text(encoding="utf-8")) if folders else []
    known = [printed, *SOURCES.values(), *(claim["prompt"] for claim in heldout)]
    names = [text for [text, *_] in templates() if len(text) > 10]
    runs = [folder for folder in folders if (folder / "after.json").exists()]
    for folder in folders:
        known += [item["reply"] for name in ("before", "after") if (folder / f"{name}.json").exists() for item in replies(folder / f"{name}.json")]
    for folder in runs:
        known.append(printed_by(folder))
    known = one_space("\n".join(known))
    for text, is_reply in quoted_lines(readme):
        if is_reply and not runs:
            continue
        if not runs and re.search(r"\d", text) and any(text.startswith(name) for name in names) or not runs and re.fullmatch(r"[\d. -]+", text):
            continue  # a row of figures
        assert text in known, f"nothing prints: {text}"


def replies(path: Path) -> list[dict]:
    result = json.loads(path.read_text(encoding="utf-8"))
    return result["questions"] + result["heldout"]


def read_run(folder: Path) -> tuple[list[dict], dict]:
    """Return the rows of the table of step 4, and the log of step 3."""
    before, after, log = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("before.json", "after.json", "dpo_results/training_log.json"))
    for side in (before, after):
        side["questions"] = side["questions"][:1]  # without those of --ask
    return STEP_4["changes"](before, after), log


def printed_by(folder: Path) -> str:
    """Return the tables that steps 3 and 4 print, made again from what they wrote."""
    rows, log = read_run(folder)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        STEP_4["show_changes"](rows)
    for row in log["history"]:
        if "loss/dpo" in row:
            names = ("rewards/margins", "rewards/chosen", "rewards/rejected")
            print(row["step"], f"{row['loss/dpo']:.4f}", *(f"{row[name]:.3f}" for name in names), f"{row['rewards/accuracies']:.2f}", file=out)
    return out.getvalue()


def check_figures(readme: str, folders: list[Path]) -> None:
    """The rates of every finished run stand in a row of a table, with its log-loss."""
    for folder in folders:
        rows, log = read_run(folder)
        wrong, right, discernment, log_loss = (row["after"] for row in rows[:4])
        change = f"{log_loss / rows[3]['before'] - 1:+.0%}".replace("%", " %")
        line = f"{wrong:.0%} {right:.0%} {100 * discernment:+.0f}".replace("%", " %")
        lines = [one_space(re.sub("[|/]", " ", line)) for line in readme.splitlines() if line.startswith("|")]
        assert any(line in other and (change in other or f"{log_loss:.3f}" in other) for other in lines), f"{folder}: no row has {line} and {change}"


def check_labelled_replies(readme: str) -> None:
    """How well the measure of steps 2 and 4 reads single replies, and how often two annotators differ: the README says it."""
    from sklearn.metrics import cohen_kappa_score as kappa

    rows = json.loads((ROOT / "tests/labelled_replies.json").read_text(encoding="utf-8"))
    assert len(rows) == 320 and len({(row["model"], row["prompt"]) for row in rows}) == 320
    text = one_space(readme)

    def says(figures: str) -> None:
        assert figures.replace("%", " %") in text, f"the README does not say: {figures}"

    def read(rows: list[dict]) -> list[tuple[str, str]]:
        """Return the labels of the replies that take a side, and how the measure reads each."""
        judged = [row for row in rows if row["labels"][0] == row["labels"][1] != "neither"]
        return [(row["labels"][0], "agrees" if row["agreement"] > 0.5 else "disagrees") for row in judged]

    def right(pairs: list[tuple[str, str]]) -> int:
        return sum(one == other for one, other in pairs)

    labels = [tuple(row["labels"]) for row in rows]
    judged = read(rows)
    fresh = read([row for row in rows if row["model"] == "tuned, seed 1"])
    assert right(judged) / len(judged) >= 0.85
    says(f"They agreed on {right(labels)} (kappa {kappa(*zip(*labels)):.2f};")
    says(f"In {len(rows) - len(judged)} the reply takes no side")
    says(f"Of the other {len(judged)} the measure reads {right(judged)} as they did ({right(judged) / len(judged):.0%}, kappa {kappa(*zip(*judged)):.2f})")
    for label in ("agree", "disagree"):
        pairs = [pair for pair in judged if pair[0] == f"{label}s"]
        says(f"{right(pairs)} of {len(pairs)} {label}ments")
    says(f"it reads {right(fresh)} of {len(fresh)} that take a side as they did ({right(fresh) / len(fresh):.0%})")
    for_all = {row["prompt"] for row in rows if row["model"] == "base"}
    rates = {}
    for model in ("base", "tuned, seed 42", "tuned, seed 1"):
        for user_is_right in (False, True):
            some = [row["labels"] for row in rows if (row["model"], row["user_is_right"]) == (model, user_is_right) and row["prompt"] in for_all]
            rates[model, user_is_right] = " / ".join(f"{100 * some.count([label, label]) / len(some):.0f}" for label in ("agrees", "disagrees")) + "%"
    one, other = "tuned, seed 42", "tuned, seed 1"
    says(f"{rates['base', False]} of the wrong claims before, {rates[one, False]} after (seed 42) and {rates[other, False]} (seed 1)")
    says(f"{rates['base', True]} of the right ones before, {rates[one, True]} and {rates[other, True]} after")


CHECKS = [check_commands, check_flags, check_files, check_messages, check_labelled_replies]


def main(folders: list[Path]) -> None:
    for check in CHECKS:
        check(README)
    with tempfile.TemporaryDirectory() as folder:
        chapter = Chapter(Path(folder) / "chapter")
        printed = chapter.ok(0, **NO_HUB) + chapter.ok(1)
        check_quotes(README, printed, folders or [chapter.output])
    check_figures(README, folders)
    print(f"The README holds: {len(CHECKS)} checks, {len(quoted_lines(README))} quoted lines, {len(folders)} finished runs")


if __name__ == "__main__":
    try:
        main([Path(folder) for folder in sys.argv[1:]])
    except AssertionError as error:
        sys.exit(f"error: README.md: {error}")
