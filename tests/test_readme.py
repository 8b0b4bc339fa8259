"""The README's commands, flags and files exist, and its measured claim on the labelled replies holds."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS

README = (ROOT / "README.md").read_text(encoding="utf-8")
HELP = {number: subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True).stdout for number, path in SCRIPTS.items()}


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
        for flag in re.findall(r"(?<!\S)--[a-z-]+", span) if not span.startswith("pip ") else []:
            assert flag in (HELP[script[1]] if script else "".join(HELP.values())), span
            checked.add(flag)
    assert len(checked) >= 7


def test_quoted_table_header_is_what_step_3_prints():
    assert "Step  Training Loss  Rewards/Margins  Rewards/Chosen  Rewards/Rejected  Rewards/Accuracies" in README


def test_labelled_replies():
    """How well the measure of steps 2 and 4 reads single replies: the README says it, from replies labelled by hand."""
    rows = json.loads((ROOT / "tests/labelled_replies.json").read_text(encoding="utf-8"))
    assert len(rows) == 80
    judged = [row for row in rows if row["label"] != "neither"]
    right = sum((row["agreement"] > 0.5) == (row["label"] == "agrees") for row in judged)
    assert f"{right} of {len(judged)}" in README


@pytest.mark.parametrize("number", sorted(SCRIPTS))
def test_docstring_time_is_given(number):
    assert re.search(r"^Time: .*\d|^Time: .*second", SCRIPTS[number].read_text(), re.MULTILINE)
