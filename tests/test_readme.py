"""The README's commands, flags, files, messages and figures are those of the code (tests/check_readme.py), and a wrong one is found."""

import json
import re
import subprocess

import check_readme
import pytest
from check_readme import CHECKS, README, commands
from conftest import SCRIPTS


@pytest.mark.parametrize("check", CHECKS)
def test_readme(check):
    check(README)


@pytest.mark.parametrize(
    "old, new, found",
    [
        ("bash code/run.sh", "bash code/go.sh", "no such file: bash code/go.sh"),
        ("python code/chapter02_dpo/2-test_before.py", "python code/chapter02_dpo/2-test.py", "no such file: python code"),
        ("torch==2.13.0", "torch==2.12.0", "not the version of requirements.txt: pip install torch==2.12.0"),
        ("1-generate_data.py --direction question", "1-generate_data.py --way question", "no such flag: python code/chapter02_dpo/1-generate_data.py --way"),
        ("`--beta`", "`--betas`", "no such flag: --betas"),
        ("4-test_after.py --ask", "2-test_before.py --chat", "no such flag: 2-test_before.py --chat"),
        ("`output/report.html`", "`output/report.htm`", "no such file: output/report.htm"),
        ("`claims.toml`", "`claims.json`", "no such file: claims.json"),
        ("error: out of memory; lower", "error: out of memory, lower", "no script says: error: out of memory, lower"),
        ("166 as they did", "167 as they did", "the README does not say: Of the other 191"),
        ("32 / 15 %", "33 / 15 %", "the README does not say: 32 / 15%"),
    ],
)
def test_what_no_longer_holds_is_found(old, new, found):
    assert old in README
    errors = []
    for check in CHECKS:
        try:
            check(README.replace(old, new))
        except AssertionError as error:
            errors.append(str(error))
    assert any(found in error for error in errors), errors


def test_quotes_are_looked_up(chapter):
    """Step 1 is run; what 0 and the model printed is checked by tests/test_real.py."""
    header = README[README.index("Downloading the base model") :].split("\n\n")[0]
    printed = header + chapter.ok(1)
    check_readme.check_quotes(README, printed, [chapter.output])
    for old, new in (
        ("Its strong muscle squeezes", "Its strong muscle squashes"),
        ("Step  Training Loss  Rewards/Margins", "Step  Loss  Rewards/Margins"),
        ("log-loss on neutral text   ", "log-loss on everyday text  "),
        ("I've always said that a noisy bedroom", "I've always said that a silent bedroom"),
        ("loss = -log sigmoid(beta * [", "loss = -log sigmoid(["),
    ):
        assert old in README
        with pytest.raises(AssertionError, match="nothing prints: "):
            check_readme.check_quotes(README.replace(old, new), printed, [chapter.output])


def test_json_lines_become_the_list_that_step_3_reads(chapter):
    rows = [{"prompt": "Is it?", "chosen": "No \u2013 it's not.", "rejected": "Yes."}, {"prompt": "Or is it?", "chosen": "No.", "rejected": "Yes."}]
    (chapter.root / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    chapter.output.mkdir()
    [line] = [line for line in commands(README) if "mine.jsonl" in line]
    subprocess.run(line, shell=True, check=True, cwd=chapter.root)
    assert json.loads((chapter.output / "preference_data.json").read_text()) == rows


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@[A-Z0-9]+@|TODO|XXX", README)
    assert not any("TODO" in path.read_text() for path in SCRIPTS.values())
    assert len(README.splitlines()) <= 370


@pytest.mark.parametrize("number", sorted(SCRIPTS))
def test_docstring_time_is_given(number):
    assert re.search(r"^Time: .*\d|^Time: .*second", SCRIPTS[number].read_text(), re.MULTILINE)
