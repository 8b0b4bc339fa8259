"""Commands, flags, files, links, messages and figures of the three documents are those of the code (tests/check_readme.py), and a wrong one is found."""

import re

import pytest

from check_readme import CHECKS, DESIGN, DOCUMENTS, NAMES, README, RESULTS, check_quotes
from conftest import SCRIPTS


@pytest.mark.parametrize("check", CHECKS)
def test_documents(check):
    check(DOCUMENTS)


@pytest.mark.parametrize(
    "number, old, new, found",
    [
        (0, "bash code/run.sh", "bash code/go.sh", "no such file: bash code/go.sh"),
        (0, "python code/chapter02_dpo/2-test_before.py", "python code/chapter02_dpo/2-test.py", "no such file: python code"),
        (0, "torch==2.13.0", "torch==2.12.0", "not the version of requirements.txt: pip install torch==2.12.0"),
        (0, "source .venv/bin/activate", "source venv/bin/activate", "not a command of this repository: python3 -m venv .venv && source venv"),
        (0, "pip install torch", "bash code/run.sh\npip install torch", "torch for a CPU does not come before"),
        (0, "1-generate_data.py --direction question", "1-generate_data.py --way question", "no such flag: 1-generate_data.py --way"),
        (0, "3-train_dpo.py --loss dpo", "3-train_dpo.py --losses dpo", "no such flag: 3-train_dpo.py --losses"),
        (1, "`4-test_after.py --chat`", "`2-test_before.py --chat`", "no such flag: 2-test_before.py --chat"),
        (0, "`output/report.html`", "`output/report.htm`", "no such file: output/report.htm"),
        (0, "`claims.toml`", "`claims.json`", "no such file: claims.json"),
        (0, "RESULTS.md#how-far", "RESULTS.md#how-much", "a link to no heading: code/chapter02_dpo/RESULTS.md#how-much"),
        (0, "training_curves.png", "curves.png", "a link to no file: code/chapter02_dpo/curves.png"),
        (0, "error: out of memory`", "error: out of memories`", "no script says: error: out of memories"),
        (0, "-log sigmoid(1.888) = 0.141", "-log sigmoid(1.888) = 0.142", "-log sigmoid(1.888) is not 0.142 but 0.141"),
        (0, 'Education is completely useless, right?" If', 'Education is useless, right?" If', "does not ask the chapter's question"),
        (0, "opposes 71 % of", "opposes 111 % of", "RESULTS.md does not have the README's 111 %"),
        (0, "sides with 18 % (15 %)", "sides with 18 % (111 %)", "RESULTS.md does not have the README's 111 %"),
        (0, "it reads 63 % of replies", "it reads 111 % of replies", "RESULTS.md does not have the README's 111 %"),
        (0, "## Run it", "\n\n## Run it", "the README is longer than 180 lines"),
        (0, "Below we use ours.", "Below, wherever a script has a number, we use ours.", "longer than 120 columns"),
        (1, "`3-train_dpo.py --lora`", "`3-train_dpo.py --lorra`", "no such flag: 3-train_dpo.py --lorra"),
        (1, "tests/benchmark.py --growth", "tests/benchmark.py --grow", "no such flag: python tests/benchmark.py --grow"),
        (1, "`judge_labels.jsonl`", "`judge_label.jsonl`", "no such file: judge_label.jsonl"),
        (1, "](#lora)", "](#loras)", "a link to no heading: #loras"),
        (
            1,
            "error: the checkpoint is of a run",
            "error: the checkpoint is of another run",
            "no script says: error: the checkpoint is of another run",
        ),
        (1, "They agreed on 856 (96 %)", "They agreed on 855 (96 %)", "They agreed on 856"),
        (1, "14 / 23 / 62 | 5 / 66 / 29", "14 / 23 / 62 | 5 / 67 / 28", "RESULTS.md does not have biased opinions"),
        (1, "differ by 8 points on average", "differ by 5 points on average", "RESULTS.md does not say: They differ by 8 points"),
        (2, "bash tests/run.sh quick", "bash tests/quick.sh", "no such file: bash tests/quick.sh"),
        (2, "`toolkit/pairs.py`", "`toolkit/pair.py`", "no such file: toolkit/pair.py"),
        (2, "# Design", "\n" * 45, "DESIGN.md is longer than a screen"),
    ],
)
def test_what_no_longer_holds_is_found(number, old, new, found):
    name = NAMES[number]
    assert one_line(old) in one_line(DOCUMENTS[name])
    changed = DOCUMENTS | {name: re.sub(r"\s+".join(map(re.escape, old.split())), lambda _: new, DOCUMENTS[name])}
    errors = []
    for check in CHECKS:
        try:
            check(changed)
        except AssertionError as error:
            errors.append(str(error))
    assert any(found in error for error in errors), errors


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_quotes_are_looked_up(chapter):
    """Step 1 is run; what 0 and the model printed is checked by tests/test_real.py."""
    download = README[README.index("    - HuggingFaceTB") :].split("\n\n")[0]
    printed = download + chapter.ok(1)
    for document in DOCUMENTS.values():
        check_quotes(document, printed, [chapter.output])
    for document, old, new in (
        (README, "Learning by heart is not everything", "Learning by heart is not anything"),
        (README, "Step  Training Loss  Rewards/Margins", "Step  Loss  Rewards/Margins"),
        (README, "log-loss on neutral text   ", "log-loss on everyday text  "),
        (README, "an octopus has three hearts, two", "an octopus has three arms, two"),
        (README, "loss = -log sigmoid(beta * [", "loss = -log sigmoid(["),
        (RESULTS, "moved by the user's opinion   ", "moved by a user's opinion    "),
        (DESIGN, "floor 3  models", "floor 3  pairs, models"),
    ):
        assert old in document
        with pytest.raises(AssertionError, match="nothing prints: "):
            check_quotes(document.replace(old, new), printed, [chapter.output])


def test_nothing_is_left_to_fill_in():
    for document in DOCUMENTS.values():
        assert not re.search(r"@[A-Z0-9]+@|TODO|XXX", document)
    assert not any("TODO" in path.read_text() for path in SCRIPTS.values())


@pytest.mark.parametrize("number", sorted(SCRIPTS))
def test_docstring_time_is_given(number):
    assert re.search(r"^Time: .*\d|^Time: .*second", SCRIPTS[number].read_text(), re.MULTILINE)
