"""Steps 2, 3 and 4 on a tiny random model: what they write, resume, determinism, and the loss against the paper's formula."""

import functools
import json
import math
import re
import shutil
import subprocess
import sys
import time

import pytest

from conftest import ROOT, Chapter, clean_environment
from families import make_model

HEADER = "Step  Training Loss  Rewards/Margins  Rewards/Chosen  Rewards/Rejected  Rewards/Accuracies"


def results(chapter):
    return chapter.output / "dpo_results"


def log(chapter) -> dict:
    return json.loads((results(chapter) / "training_log.json").read_text())


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def copy(chapter, folder) -> Chapter:
    other = Chapter(folder)
    shutil.copytree(chapter.output, other.output)
    return other


def test_training_writes_what_the_contract_says(tiny):
    out = tiny.ok(3, "--max-steps", "25", "--learning-rate", "1e-3")
    lines = out.splitlines()
    for line in ("Loading base model ...", "Starting DPO training... (watch loss and reward margins)", HEADER):
        assert line in lines
    assert lines[-1] == "Done! Saved to ./output/dpo_results/final_model."
    rows = [line.split() for line in lines[lines.index(HEADER) :] if line[:4].strip().isdigit()]
    assert [int(row[0]) for row in rows] == [5, 10, 15, 20, 25]
    by_step = {row["step"]: row for row in log(tiny)["history"] if "loss/dpo" in row}
    for step, loss, margin, chosen, rejected, accuracy in rows:
        logged = by_step[int(step)]
        assert float(loss) == pytest.approx(logged["loss/dpo"], abs=1e-4)
        assert float(margin) == pytest.approx(logged["rewards/margins"], abs=1e-3)
        assert float(margin) == pytest.approx(float(chosen) - float(rejected), abs=2e-3)
        assert float(accuracy) == pytest.approx(logged["rewards/accuracies"], abs=0.01)
    assert by_step[1]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6)

    # One pair as the model sees it, with the template and the end of the turn.
    pair = json.loads((tiny.output / "preference_data.json").read_text())[0]
    assert f"<|im_start|>user\\n{pair['prompt']}<|im_end|>\\n<|im_start|>assistant\\n" in out.replace('\\"', '"').replace("\\'", "'")
    assert f"{pair['chosen']}<|im_end|>" in out.replace("\\'", "'")

    written = log(tiny)
    assert written["settings"] | {"max_steps": 25} == written["settings"]
    assert written["settings"]["beta"] == 0.1 and written["seconds"] > 0 and written["peak_memory_gb"] > 0.1
    assert written["base_model"]["model"] == "tiny-qwen2" and written["versions"]["trl"]
    assert (results(tiny) / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    left = sorted(path.name for path in results(tiny).iterdir() if not path.name.startswith(".lock"))
    assert left == ["final_model", "training_curves.png", "training_log.json"]


def test_every_weight_above_the_lowest_quarter_moves_and_the_base_model_stays(chapter, tmp_path):
    chapter.ok(0, "--model", str(make_model("qwen2", tmp_path / "four layers", num_hidden_layers=4)))
    chapter.ok(1)
    base = chapter.output / "base_model"
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    chapter.ok(3, "--max-steps", "5", "--learning-rate", "1e-3")
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    old, new = weights(base), weights(results(chapter) / "final_model")
    assert any(".layers.3." in name for name in old)
    assert old.keys() == new.keys()
    for name in old:
        frozen = "embed_tokens" in name or ".layers.0." in name
        assert old[name].dtype == new[name].dtype and (old[name] == new[name]).all() == frozen, name


def test_same_seed_same_weights_other_seed_other_weights(tiny, tmp_path):
    other = copy(tiny, tmp_path / "other")
    flags = ("--max-steps", "10", "--learning-rate", "1e-3")
    tiny.ok(3, *flags), other.ok(3, *flags)
    model = "final_model/model.safetensors"
    assert (results(tiny) / model).read_bytes() == (results(other) / model).read_bytes()

    def steps(chapter):
        return [{k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k} for row in log(chapter)["history"]]

    assert steps(tiny) == steps(other)
    other.ok(3, *flags, "--seed", "7")
    assert (results(tiny) / model).read_bytes() != (results(other) / model).read_bytes()

    # The README's variable lets a CPU calculate in bf16: other weights, still in fp32, from nearly the same losses.
    other.ok(3, *flags, ACCELERATE_MIXED_PRECISION="bf16")
    assert (log(tiny)["mixed_precision"], log(other)["mixed_precision"]) == ("no", "bf16")
    fp32, bf16 = (weights(results(chapter) / "final_model") for chapter in (tiny, other))
    assert all(fp32[name].dtype == bf16[name].dtype for name in fp32) and any((fp32[name] != bf16[name]).any() for name in fp32)
    losses = [[row["loss/dpo"] for row in log(chapter)["history"] if "loss/dpo" in row] for chapter in (tiny, other)]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    line = other.error(3, ACCELERATE_MIXED_PRECISION="bf61")
    assert line.startswith("error: Unknown mixed_precision mode: bf61") and line.endswith("; set ACCELERATE_MIXED_PRECISION to bf16, or leave it out")


def test_disk_holds_one_checkpoint(tiny):
    process = tiny.start(3, "--max-steps", "100", pipe=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        most = max(most, len(list(results(tiny).glob("checkpoint-*/trainer_state.json"))))
        time.sleep(0.01)
    assert process.returncode == 0
    assert most in (1, 2)  # for a moment two: the old one goes when the new one is whole


def test_resume_without_a_checkpoint(tiny):
    assert tiny.error(3, "--resume") == "error: output/dpo_results/ holds no checkpoint to go on from; run without --resume"


def test_a_run_over_old_results_replaces_them(tiny):
    tiny.ok(3, "--max-steps", "5")
    first = (results(tiny) / "final_model/model.safetensors").read_bytes()
    tiny.ok(3, "--max-steps", "10", "--learning-rate", "1e-3")
    assert (results(tiny) / "final_model/model.safetensors").read_bytes() != first
    assert log(tiny)["settings"]["max_steps"] == 10


def test_logged_losses_are_the_papers_formulas(tiny):
    """Both losses, in float64 from the two saved models, against what was logged on held-out pairs of wrong and of right claims at the last step.

    The DPO loss is equation 7 of Rafailov et al. 2023; the supervised one is -log p per token of the chosen answers of a batch.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny.ok(3, "--max-steps", "30", "--learning-rate", "1e-3", "--beta", "0.3", "--loss", "dpo+sft")
    logged = log(tiny)["history"]
    logged = {kind: next(row for row in logged if f"eval_{kind}_loss" in row) for kind in ("wrong", "right")}
    final = results(tiny) / "final_model"
    tokenizer = AutoTokenizer.from_pretrained(final)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for folder in (final, tiny.output / "base_model")]

    def log_p(model, prompt, answer):
        messages = [{"role": "user", "content": prompt}]
        start = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(messages + [{"role": "assistant", "content": answer}], return_dict=True)["input_ids"]
        assert whole[: len(start)] == start
        with torch.no_grad():
            token_log_p = model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
        return sum(token_log_p[i - 1, whole[i]].item() for i in range(len(start), len(whole))), len(whole) - len(start)

    heldout = json.loads((tiny.output / "heldout_data.json").read_text())
    for kind, count in (("wrong", 20), ("right", 20)):
        dpo, margins, batches = [], [], []
        rows = [row for row in heldout if row["user_is_right"] is (kind == "right")]
        for number, row in enumerate(rows[:: len(rows) // count]):
            chosen, rejected = ([log_p(model, row["prompt"], row[key]) for model in models] for key in ("chosen", "rejected"))
            margins.append(0.3 * ((chosen[0][0] - chosen[1][0]) - (rejected[0][0] - rejected[1][0])))
            dpo.append(math.log1p(math.exp(-margins[-1])))
            if number % 4 == 0:
                batches.append([])
            batches[-1].append(chosen[0])
        assert len(dpo) == count and max(map(abs, margins)) > 0.01
        dpo, margin = sum(dpo) / count, sum(margins) / count
        sft = sum(-sum(score for score, _ in batch) / sum(tokens for _, tokens in batch) for batch in batches) / len(batches)
        assert logged[kind][f"eval_{kind}_loss/dpo"] == pytest.approx(dpo, abs=1e-5)
        assert logged[kind][f"eval_{kind}_loss/sft"] == pytest.approx(sft, abs=1e-5)
        assert logged[kind][f"eval_{kind}_rewards/margins"] == pytest.approx(margin, abs=1e-5)
        assert logged[kind][f"eval_{kind}_loss"] == pytest.approx(dpo + 0.05 * sft, abs=1e-5)


@pytest.mark.parametrize("shared", [0, 2, 6])
def test_prompt_computed_once_gives_trls_own_numbers(tiny_model, shared):
    """Log-probabilities and their gradients, pairs of unequal lengths, against TRL's head on rows of prompt + answer; so many tokens begin all prompts."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from toolkit.training import answer_log_probs

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    add_fused_lm_head(model)
    torch.manual_seed(0)
    prompts, answers = [7, 12, 3], [[5, 9], [8, 2], [1, 11]]  # tokens of each prompt, of its chosen and its rejected answer
    ids, labels = torch.zeros(6, 20, dtype=torch.long), torch.full((6, 20), -100)
    for pair, (length, both) in enumerate(zip(prompts, answers)):
        prompt = torch.randint(3, 200, (length,))
        prompt[:shared] = torch.arange(3, 3 + shared)[:length]
        for row, tokens in zip((pair, pair + 3), both):
            ids[row, :length] = prompt
            ids[row, length : length + tokens] = labels[row, length : length + tokens] = torch.randint(3, 200, (tokens,))
        ids[pair + 3, length] = labels[pair + 3, length] = ids[pair, length]  # both answers begin alike
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}

    def scores_and_gradient(score):
        model.zero_grad()
        scores = score(**batch).log_probs
        (scores * torch.arange(6)[:, None]).sum().backward()
        return scores.detach().double(), torch.cat([weight.grad.flatten() for weight in model.parameters()])

    theirs = scores_and_gradient(functools.partial(model, fused_lm_head=True))
    ours = scores_and_gradient(functools.partial(answer_log_probs, model))
    assert (theirs[0] != 0).sum() == 36
    for one, two in zip(theirs, ours):
        assert one.shape == two.shape and one.abs().max() > 1 and torch.allclose(one, two, atol=1e-5, rtol=1e-5)


def test_batches_too_long_for_one_row_are_scored_as_well(tiny):
    """With no batch short enough, and what scores one row taken out, the logged rows stay the same."""
    flags = ["--max-steps", "20", "--learning-rate", "1e-3"]
    tiny.ok(3, *flags)
    together = [row for row in log(tiny)["history"] if "loss" in row]
    module = tiny.root / "code/chapter02_dpo/toolkit/training.py"
    text = module.read_text()
    for old, new in {"LONGEST_ROW = 4096": "LONGEST_ROW = 0", "partial(answer_log_probs, model)": "partial(None)"}.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    module.write_text(text)
    tiny.ok(3, *flags)
    apart = [row for row in log(tiny)["history"] if "loss" in row]
    assert len(together) == len(apart) == 5 and max(abs(row["rewards/margins"]) for row in apart) > 0.01
    for one, two in zip(together, apart):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4) and one["rewards/margins"] == pytest.approx(two["rewards/margins"], abs=1e-4)


@pytest.mark.parametrize("loss", ["dpo", "sft"])
def test_one_loss_alone(tiny, loss):
    tiny.ok(3, "--max-steps", "40", "--learning-rate", "1e-3", "--loss", loss)
    rows = [row for row in log(tiny)["history"] if "loss" in row]
    assert rows and all(row["loss"] == pytest.approx(row[f"loss/{loss}"], abs=1e-4) for row in rows)
    assert rows[-1][f"loss/{loss}"] < rows[0][f"loss/{loss}"]


def test_lora_leaves_a_merged_model_and_the_adapter(tiny):
    """final_model/ loads without peft and gives the logits of base model and adapter; another kind of run removes the adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tiny.ok(3, "--max-steps", "10", "--lora")
    assert log(tiny)["settings"]["learning_rate"] == 2e-4
    old, new = weights(tiny.output / "base_model"), weights(results(tiny) / "final_model")
    assert old.keys() == new.keys()
    for name in old:
        assert (old[name] == new[name]).all() == ("_proj.weight" not in name), name
    base = AutoModelForCausalLM.from_pretrained(tiny.output / "base_model")
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        untuned = base(tokens).logits
        adapted = PeftModel.from_pretrained(base, results(tiny) / "adapter")(tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(results(tiny) / "final_model")(tokens).logits
    assert torch.allclose(adapted, merged, atol=1e-5) and not torch.allclose(untuned, merged, atol=1e-4)
    tiny.ok(3, "--max-steps", "1")
    assert not (results(tiny) / "adapter").exists()


def test_diverged_training_is_not_saved(tiny):
    tiny.ok(3, "--max-steps", "5")
    before = (results(tiny) / "final_model/model.safetensors").read_bytes()
    line = tiny.error(3, "--max-steps", "40", "--learning-rate", "1e30")
    items = [int(number) for number in re.findall(r"output/\w+_data.json item (\d+)", line)]
    assert line.startswith("error: training diverged at step 2, on output/") and len(items) == 2 and "lower --learning-rate" in line
    assert (results(tiny) / "final_model/model.safetensors").read_bytes() == before


def test_without_control_data_the_pairs_alone_are_trained_on(tiny):
    (tiny.output / "control_data.json").unlink()
    assert "100 pairs of preference_data.json, 0 of control_data.json" in tiny.ok(3, "--max-steps", "1")
    assert tiny.ok(1) and "100 of control_data.json" in tiny.ok(3, "--max-steps", "1")
    assert " 0 of control_data.json" in tiny.ok(3, "--max-steps", "1", "--no-controls")


@pytest.mark.parametrize(
    "flags", [("--beta", "0"), ("--beta", "-1"), ("--beta", "nan"), ("--epochs", "0"), ("--batch-size", "0"), ("--learning-rate", "0")]
)
def test_settings_that_cannot_be(chapter, flags):
    assert chapter.error(3, *flags).endswith(f"error: {flags[0]} must be above 0")


def test_readers_own_data_in_the_same_form(tiny):
    rows = [{"prompt": f"Is {i} a nümber? \u4f60\u597d", "chosen": f"Yes, {i} is.", "rejected": "No."} for i in range(7)]
    (tiny.output / "preference_data.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert "7 pairs of preference_data.json" in tiny.ok(3, "--epochs", "1")


def test_two_base_models_are_not_compared(tiny):
    tiny.ok(3, "--max-steps", "5")
    tiny.ok(2)
    before = json.loads((tiny.output / "before.json").read_text())
    before["base_model"]["sha256"]["model.safetensors"] = "0" * 64
    (tiny.output / "before.json").write_text(json.dumps(before))
    assert tiny.error(4).startswith("error: output/before.json is about another base model")
    assert not (tiny.output / "after.json").exists()


def test_another_base_model_judges_nothing(tiny):
    tiny.ok(2)
    tiny.ok(3, "--max-steps", "5")
    path = tiny.output / "base_model/source.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": "another"}))
    assert tiny.error(4).startswith("error: output/base_model/ is another model than the one that was tuned, which judges the replies")
    assert not (tiny.output / "after.json").exists()


def test_files_of_an_older_version_are_named(tiny):
    tiny.ok(2)
    tiny.ok(3, "--max-steps", "5")
    for name, key, number in (("before", "reply", 4), ("heldout_data", "opposite", 2)):
        path = tiny.output / f"{name}.json"
        text = path.read_text()
        assert f'"{key}"' in text
        path.write_text(text.replace(f'"{key}"', '"old"'))
        kept = {file: file.read_bytes() for file in tiny.output.glob("*.json")}
        line = tiny.error(number)
        assert (
            line.startswith(f"error: output/{name}.json")
            and "of an older version" in line
            and f"run {'2-test_before' if number == 4 else '1-generate_data'}.py" in line
        )
        assert {file: file.read_bytes() for file in tiny.output.glob("*.json")} == kept


def test_run_sh_runs_everything_in_order_and_stops_at_a_failure(tiny, tmp_path):
    shutil.copyfile(ROOT / "requirements.txt", tiny.root / "requirements.txt")
    env = clean_environment(tiny.root)
    env |= {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{env['PATH']}"}
    command = ["bash", str(tiny.root / "code/run.sh")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    headings = [line for line in done.stdout.splitlines() if line.startswith("=== ")]
    assert headings == [
        f"=== {name}" for name in ("0-download_model.py", "1-generate_data.py", "2-test_before.py", "3-train_dpo.py", "4-test_after.py")
    ]
    assert f"Results are in {tiny.output}" in done.stdout and done.stdout.count(" s  ") == 5
    assert log(tiny)["history"][-1]["step"] >= 150

    (tiny.root / "code/chapter02_dpo/claims.toml").write_text("[[topic]")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: 1-generate_data.py failed")
    assert "2-test_before.py" not in done.stdout
