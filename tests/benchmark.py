"""Time and memory of step 3 against the chapter's recipe as written and against TRL's own command, on the same pairs, model and machine.

    python tests/benchmark.py [--steps 30] [--repeats 2]

Needs output/base_model/ and the files of step 1. All contestants take turns, so that a slow minute of the machine falls on each; the first is
the baseline of the ratios. `--steps -1` runs the whole three epochs. Each runs in a process of its own: seconds are from its start to its
end, memory is the peak of its resident set. Ours runs the reference model over all pairs before the first step and measures held-out pairs,
which a run of few steps pays for without gaining from it; the chapter's recipe and `trl dpo` read the pairs without the chat template, which
is over a third of the tokens. The last column counts all tokens: it is the share of the arithmetic (TRL's compute_flops_per_token) in what a large
matrix product reaches on this machine. Not a test: no time limit is checked.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE_MODEL = ROOT / "output/base_model"
CHAPTER = """
import json, sys
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

base_model, folder, steps = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base_model)
model = AutoModelForCausalLM.from_pretrained(base_model)
args = DPOConfig(
    output_dir=folder + "/results", beta=0.1, learning_rate=1e-5, num_train_epochs=3, per_device_train_batch_size=2, logging_steps=5,
    save_steps=20, max_steps=int(steps), use_cpu=True, bf16=False, report_to="none",
)
with open(folder + "/data/train.json") as file:
    pairs = Dataset.from_list(json.load(file))
trainer = DPOTrainer(model=model, args=args, train_dataset=pairs, processing_class=tokenizer)
trainer.train()
trainer.save_model(folder + "/final_model")
"""


def contestants(folder: Path, steps: int) -> dict[str, list[str]]:
    """Return the command of each contestant, by name; folder holds data/train.json, and the chapter's code and output."""
    ours = [sys.executable, str(folder / "code/chapter02_dpo/3-train_dpo.py"), "--max-steps", str(steps)]
    trl = ["--model_name_or_path", BASE_MODEL, "--dataset_name", folder / "data", "--output_dir", folder / "trl", "--max_steps", steps]
    trl += ["--num_train_epochs", 3, "--per_device_train_batch_size", 2, "--use_cpu", "--bf16", "False", "--report_to", "none"]
    return {
        "the chapter's recipe": [sys.executable, "-c", CHAPTER, str(BASE_MODEL), str(folder), str(steps)],
        "trl dpo": [str(Path(sys.executable).with_name("trl")), "dpo", *map(str, trl)],
        "ours": ours,
        "ours, --lora": [*ours, "--lora"],
    }


def run(command: list[str], log: Path) -> tuple[float, float]:
    """Run a command to its end and return its seconds and its peak memory in GB, or raise RuntimeError with the end of what it printed."""
    start = time.monotonic()
    with open(log, "w") as file:
        env = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=env)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"{command[:3]} failed:\n{log.read_text()[-2000:]}")
    return time.monotonic() - start, usage.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def matrix_product_peak() -> float:
    """Return the floating-point operations a second of the best of ten products of two fp32 matrices of 2048 x 2048."""
    import torch

    a, b = torch.randn(2, 2048, 2048)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=2)
    flags = parser.parse_args()

    from transformers import AutoConfig, AutoTokenizer
    from trl.trainer.utils import compute_flops_per_token

    pairs = [pair for name in ("preference_data", "control_data") for pair in json.loads((ROOT / f"output/{name}.json").read_text())]
    steps = flags.steps if flags.steps > 0 else 3 * ((len(pairs) + 1) // 2)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)

    def length(pair: dict, name: str) -> int:
        messages = [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[name]}]
        return len(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])

    lengths = [length(pair, name) for pair in pairs for name in ("chosen", "rejected")]
    tokens = 2 * sum(lengths) / len(pairs) * steps  # two pairs a step
    operations = tokens * compute_flops_per_token(AutoConfig.from_pretrained(BASE_MODEL), round(statistics.mean(lengths)))
    peak = matrix_product_peak()
    print(f"{steps} steps of 2 pairs, {tokens:,.0f} tokens; a large matrix product reaches {peak / 1e9:.0f} GFLOP/s")

    results: dict[str, list[tuple[float, float]]] = {}
    for repeat in range(flags.repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "data").mkdir()
            (folder / "data/train.json").write_text(json.dumps(pairs))
            shutil.copytree(ROOT / "code", folder / "code")
            (folder / "output").mkdir()
            (folder / "output/base_model").symlink_to(BASE_MODEL)
            for file in ("preference_data.json", "control_data.json", "heldout_data.json"):
                shutil.copyfile(ROOT / "output" / file, folder / "output" / file)
            for contestant, command in contestants(folder, steps).items():
                results.setdefault(contestant, []).append(run(command, folder / "log"))
                print(f"  run {repeat + 1}: {contestant}: {results[contestant][-1][0]:.0f} s, {results[contestant][-1][1]:.2f} GB", flush=True)

    baseline = next(iter(results.values()))
    print(f"\n{'':22}{'seconds':>9}{'ratio':>8}{'spread':>14}{'s a pair':>10}{'GB':>7}{'ratio':>8}{'of peak':>9}")
    for contestant, runs in results.items():
        seconds, memory = (statistics.mean(column) for column in zip(*runs))
        ratios = [mine[0] / its[0] for mine, its in zip(runs, baseline)]
        memory_ratio = memory / statistics.mean(gb for _, gb in baseline)
        print(
            f"{contestant:22}{seconds:9.0f}{statistics.mean(ratios):8.0%}{f'{min(ratios):.0%}-{max(ratios):.0%}':>14}"
            f"{seconds / steps / 2:10.2f}{memory:7.2f}{memory_ratio:8.0%}{operations / seconds / peak:9.0%}"
        )


if __name__ == "__main__":
    main()
