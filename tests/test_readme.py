"""The README's commands, flags and files exist, and its measured claim on the labelled replies holds."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS

README = (ROOT / "README.md").read_text(encoding="utf-8")
HELP = {number: subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True).stdout for number, path in SCRIPTS.items()}
BENCHMARK = (ROOT / "tests/benchmark.py").read_text(encoding="utf-8")


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@[A-Z]+@|TODO|XXX", README)
    assert not any("TODO" in path.read_text() for path in SCRIPTS.values())


def test_commands_name_files_that_exist():
    commands = re.findall(r"^(?:bash|python) (\S+)", README, re.MULTILINE)
    assert len(commands) >= 7
    for path in commands:
        assert (ROOT / path).is_file(), path


def test_flags_exist():
    """A flag beside a script's name is one of that script, and a flag alone is one of some script."""
    spans = [*re.findall(r"`([^`\n]+)`", README), *re.findall(r"^python .*$", README, re.MULTILINE)]
    checked = set()
    for span in spans:
        script = re.search(r"([0-4])-\w+\.py", span)
        ours = span.partition(".py")[2] if span.startswith("accelerate launch ") else "" if span.startswith("pip ") else span
        known = BENCHMARK if "tests/benchmark.py" in span else HELP[script[1]] if script else "".join(HELP.values())
        for flag in re.findall(r"(?<!\S)--[a-z-]+", ours):
            assert flag in known, span
            checked.add(flag)
    assert len(checked) >= 7


def test_quoted_table_header_is_what_step_3_prints():
    assert "Step  Training Loss  Rewards/Margins  Rewards/Chosen  Rewards/Rejected  Rewards/Accuracies" in README


def test_labelled_replies():
    """How well the measure of steps 2 and 4 reads single replies, and how often two annotators differ: the README says it."""
    from sklearn.metrics import cohen_kappa_score as kappa

    rows = json.loads((ROOT / "tests/labelled_replies.json").read_text(encoding="utf-8"))
    assert len(rows) == 320 and len({(row["model"], row["prompt"]) for row in rows}) == 320
    first, second = zip(*(row["labels"] for row in rows))
    same = sum(one == other for one, other in zip(first, second))
    assert f"They agreed on {same} (kappa {kappa(first, second):.2f};" in README
    text = " ".join(README.split())

    def read(rows):
        """Return the labels of the replies that take a side, and whether the measure reads each so."""
        judged = [row for row in rows if row["labels"][0] == row["labels"][1] != "neither"]
        return [(row["labels"][0], "agrees" if row["agreement"] > 0.5 else "disagrees") for row in judged]

    judged = read(rows)
    right = sum(one == other for one, other in judged)
    assert right / len(judged) >= 0.85
    assert f"Of the other {len(judged)} the measure reads {right} as they did ({right / len(judged):.0%}, kappa {kappa(*zip(*judged)):.2f})".replace("%", " %") in text
    for label in ("agrees", "disagrees"):
        pairs = [one == other for one, other in judged if one == label]
        assert f"{sum(pairs)} of {len(pairs)} {label[:-1]}ments" in text
    fresh = read(row for row in rows if row["model"] == "tuned, seed 1")
    right = sum(one == other for one, other in fresh)
    assert f"it reads {right} of {len(fresh)} that take a side as they did ({right / len(fresh):.0%})".replace("%", " %") in text


@pytest.mark.parametrize("number", sorted(SCRIPTS))
def test_docstring_time_is_given(number):
    assert re.search(r"^Time: .*\d|^Time: .*second", SCRIPTS[number].read_text(), re.MULTILINE)
