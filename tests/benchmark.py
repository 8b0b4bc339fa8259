"""Time and memory of step 3 against the chapter's recipe as written and against TRL's own command, on the same pairs, model and machine.

    python tests/benchmark.py [--steps 30] [--repeats 2] [--judge STEPS]
    python tests/benchmark.py --whole CHECKOUT [--repeats 2]
    python tests/benchmark.py --sizes
    python tests/benchmark.py --replies
    python tests/benchmark.py --growth 25 100 400

Needs output/base_model/ and the files of step 1. All contestants take turns, so that a slow minute of the machine falls on each; the first is the
baseline of the ratios. `--steps -1` runs the whole three epochs. Each runs in a process of its own: seconds are from its start to its end, memory is
the peak of its resident set; where there is a GPU it is used, and memory is the peak of what nvidia-smi shows as used. Ours runs the reference model
over all pairs before the first step and measures held-out pairs, which a run of few steps pays for without gaining; the chapter's recipe and `trl
dpo` read the pairs without the chat template, which is over a third of the tokens. `trl dpo` keeps its own learning rate of 1e-6, a tenth of the
others', and on a CPU one thread, which `accelerate launch` gives it unless OMP_NUM_THREADS is set. There all calculate in fp32; TRL's default there
is bf16, even if the CPU has none. "Of peak" is the arithmetic as the chapter's recipe would do it with the template, all weights on all tokens (TRL's
compute_flops_per_token), by the seconds and what a large matrix product reaches on this machine: above it is what was left out.

`--whole CHECKOUT` lets steps 1 to 4 of another version of this repository take turns with these, each version on the data that its own step 1 writes,
and tells when step 2 showed the first reply. `--judge 40` lets step 2 measure each model whenever it has done so many steps (a multiple of 20; with
--lora only at the end), and tells the seconds until discernment reached +40.
`--sizes` prints what larger models need by a formula, beside what step 3 took last for SmolLM2, and what a few steps took here on random weights of
each size that fits (half an hour on 2 cores). `--replies` lets the model answer 40 held-out prompts and score the replies, in batches as steps 2
and 4 do, and one at a time. `--growth` trains it for 10 steps on so many pairs, and on 100 with answers two and four times as long. Not a test: no
time limit is checked.

Where the arithmetic goes: a step of one process is 177 GFLOP where the chapter's recipe with the template would need 527 (2 pairs; 6 per weight and
token for a pass forward and back, 2 forward): 137 in place of 250 in the transformer blocks (255 tokens for 392), since a prompt is computed once for
both answers of its pair and its beginning once for both pairs, without padding, and no pass goes back into the lowest quarter of the layers; no
second pass forward to save memory (83), since rows are short; 21 in place of 105 for the reference model, which runs once before the first step; 19
in place of 89 for the LM head, on the 166 tokens of the answers only, its weights not trained. Attention itself (10 more) is not counted, nor is the padding of the recipe's rows.
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
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import psutil
import torch

GPU = torch.cuda.is_available()
MARK = 0.40  # discernment: share of right claims that it sides with, minus that of wrong ones
ROOT = Path(__file__).resolve().parents[1]
BASE_MODEL = ROOT / "output/base_model"
RECIPE = ROOT / "tests/chapter_recipe.py"
sys.path.insert(0, str(ROOT / "code/chapter02_dpo"))


def contestants(folder: Path, steps: int) -> dict[str, tuple[list[str], Path]]:
    """Return the command of each contestant and the model that it writes, by name; folder holds data/train.json, and the chapter's code and output."""
    ours = [sys.executable, str(folder / "code/chapter02_dpo/3-train_dpo.py"), "--max-steps", str(steps)]
    trl = ["--model_name_or_path", BASE_MODEL, "--dataset_name", folder / "data", "--output_dir", folder / "trl/final_model", "--max_steps", steps]
    trl += ["--num_train_epochs", 3, "--per_device_train_batch_size", 2, "--save_steps", 20, "--report_to", "none"]
    trl += [] if GPU else ["--use_cpu", "--bf16", "False"]
    recipe = [sys.executable, RECIPE, BASE_MODEL, folder / "data/train.json", folder / "chapter", steps]
    return {
        "the chapter's recipe": (list(map(str, recipe)), folder / "chapter/final_model"),
        "trl dpo": ([str(Path(sys.executable).with_name("trl")), "dpo", *map(str, trl)], folder / "trl/final_model"),
        "ours": (ours, folder / "output/dpo_results/final_model"),
        "ours, --lora": ([*ours, "--lora"], folder / "output/dpo_results/final_model"),
    }


def copy_chapter(folder: Path, checkout: Path = ROOT) -> None:
    """Copy the code of a checkout, and what steps 0 and 1 wrote here, into a folder."""
    shutil.copytree(checkout / "code", folder / "code")
    (folder / "output").mkdir()
    (folder / "output/base_model").symlink_to(BASE_MODEL.resolve())
    for name in ("preference_data.json", "control_data.json", "heldout_data.json"):
        shutil.copyfile(ROOT / "output" / name, folder / "output" / name)


def keep_checkpoints(results: Path, every: int, kept: Path, ended: Event) -> None:
    """Link the checkpoints of every so many steps into another folder as soon as each is whole, since ours keeps the newest only."""
    while not ended.wait(0.5):
        with suppress(OSError):  # another checkpoint is removed at this moment
            for state in results.glob("**/checkpoint-*/trainer_state.json"):  # written last
                folder = kept / state.parent.name
                if int(folder.name.removeprefix("checkpoint-")) % every == 0 and not folder.exists():
                    shutil.copytree(state.parent, folder, copy_function=os.link, ignore=shutil.ignore_patterns("*.pt", "*.pth"))


def run(command: list[str], log: Path) -> tuple[float, float]:
    """Run a command to its end and return its seconds and its peak memory in GB, or raise RuntimeError with the end of what it printed."""
    sampler = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--loop-ms=100"] if GPU else ["true"]
    with open(log, "w") as file, subprocess.Popen(sampler, stdout=subprocess.PIPE, text=True) as samples:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        samples.terminate()
        used = [int(line) for line in samples.stdout.read().split()]
    if status != 0:
        raise RuntimeError(f"{command[:3]} failed:\n{log.read_text()[-2000:]}")
    return seconds, max(used) * 2**20 / 1e9 if GPU else usage.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def seconds_of_steps(checkout: Path) -> dict[str, float]:
    """Run steps 1 to 4 of a checkout in a copy of it, and return the seconds of each, of all, and until step 2 showed the first reply."""
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        copy_chapter(Path(name), checkout)
        for script in sorted((Path(name) / "code/chapter02_dpo").glob("[1-4]-*.py")):
            log, first = [], None
            start = time.monotonic()
            command = [sys.executable, "-u", script]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
            ) as process:
                for line in process.stdout:
                    log.append(line)
                    if log[-2:-1] == ["[Raw response before tuning]\n"]:
                        first = time.monotonic() - start
            if process.returncode != 0:
                raise RuntimeError(f"{command} failed:\n{''.join(log[-20:])}")
            seconds[script.stem] = time.monotonic() - start
            if first is not None:
                seconds["first reply on the screen"] = first
    seconds["steps 1 to 4"] = sum(value for name, value in seconds.items() if name[0].isdigit())
    return seconds


def print_whole(other: Path, repeats: int) -> None:
    """Let steps 1 to 4 of another version take turns with this one's, and print the seconds of each and their ratios."""
    runs = [(seconds_of_steps(other), seconds_of_steps(ROOT)) for _ in range(repeats)]
    print(f"{'':28}{'the other version':>20}{'ours':>20}{'ratio':>8}{'spread':>14}")
    for step in runs[0][1]:
        pairs = [(theirs[step], ours[step]) for theirs, ours in runs]
        columns = [", ".join(f"{value:.1f}" for value in column) for column in zip(*pairs)]
        ratios = [ours / theirs for theirs, ours in pairs]
        print(f"{step:28}{columns[0]:>20}{columns[1]:>20}{statistics.mean(ratios):8.0%}{f'{min(ratios):.0%}-{max(ratios):.0%}':>14}")


def judge(model: Path, folder: Path) -> tuple[float, float, float]:
    """Let step 2 measure a model, and return its agreement with wrong and with right claims, and its log-loss on neutral text."""
    output = folder / "judge/output"
    output.mkdir(parents=True)
    shutil.copytree(folder / "code", folder / "judge/code")
    shutil.copyfile(ROOT / "output/heldout_data.json", output / "heldout_data.json")
    source = json.loads((BASE_MODEL / "source.json").read_text()) | {"tuned_sha256": {}}
    (model / "source.json").write_text(json.dumps(source))
    (output / "base_model").symlink_to(model)
    run([sys.executable, str(folder / "judge/code/chapter02_dpo/2-test_before.py")], folder / "log")
    result = json.loads((output / "before.json").read_text())
    shutil.rmtree(folder / "judge")
    wrong, right = (statistics.mean(item["side"] == "sides" for item in result["heldout"] if item["user_is_right"] is kind) for kind in (False, True))
    return wrong, right, statistics.mean(result["neutral_log_loss"])


def judged_run(command: list[str], model: Path, folder: Path, every: int) -> tuple[float, float, float | None]:
    """Run a command, print how the models that it wrote judge, and return its seconds, its memory in GB, and the seconds to MARK, or None."""
    start, ended, kept = time.time(), Event(), folder / "kept"
    thread = Thread(target=keep_checkpoints, args=(model.parent, every, kept, ended))
    thread.start()
    try:
        seconds, memory = run(command, folder / "log")
    finally:
        ended.set()
        thread.join()
    moments = {path.parent: (path.parent / "trainer_state.json").stat().st_mtime - start for path in kept.glob("*/model.safetensors")}
    passed = None
    for path, moment in sorted((moments | {model: seconds}).items(), key=lambda item: item[1]):
        wrong, right, log_loss = judge(path, folder)
        rates = f"agrees with {wrong:.0%} wrong, {right:.0%} right claims ({100 * (right - wrong):+.0f}), log-loss {log_loss:.3f}"
        print(f"    {moment:5.0f} s, {path.name}: {rates}", flush=True)
        if passed is None and round(right - wrong, 6) >= MARK:  # 47/60 - 23/60 is a little less than 0.4
            passed = moment
    shutil.rmtree(kept, ignore_errors=True)
    return seconds, memory, passed


def matrix_product_peak() -> float:
    """Return the floating-point operations a second of the best of ten products of two matrices: 2048 x 2048 in fp32, on a GPU 8192 x 8192 in bf16."""
    size = 8192 if GPU else 2048
    a, b = torch.randn(2, size, size).to("cuda" if GPU else "cpu", torch.bfloat16 if GPU else torch.float32)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the GPU
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


SHAPES = {  # layers, hidden size, intermediate size, vocabulary, parameters in 1e9, embeddings tied, heads (config.json of SmolLM2 and Qwen2.5)
    "SmolLM2-135M": (30, 576, 1536, 49_152, 0.135, True, (9, 3)),
    "Qwen2.5-0.5B": (24, 896, 4864, 151_936, 0.494, True, (14, 2)),
    "Qwen2.5-1.5B": (28, 1536, 8960, 151_936, 1.544, True, (12, 2)),
    "Qwen2.5-7B": (28, 3584, 18_944, 152_064, 7.616, False, (28, 4)),
}
RANDOM = """
# Step 3 as it is, on random weights of one shape, up to where it would save them. Prints peak memory, GB taken from the card, seconds a step.
import json, pathlib, runpy, statistics, sys, time
import torch, transformers, trl
from trl.trainer import dpo_trainer

path, shape, *flags = sys.argv[1:]
layers, hidden, intermediate, vocabulary, _, tied, (heads, kv_heads) = json.loads(shape)
sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate, "vocab_size": vocabulary, "tie_word_embeddings": tied}
config = transformers.Qwen2Config(**sizes, num_attention_heads=heads, num_key_value_heads=kv_heads)
device, starts = "cuda" if torch.cuda.is_available() else "cpu", []

def from_pretrained(*_, dtype, **__):
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)

class Clock(transformers.TrainerCallback):
    def on_step_begin(self, *_, **__):
        torch.get_device_module(device).synchronize()
        starts.append(time.perf_counter())

def train(trainer, **_):
    trainer.add_callback(Clock())
    transformers.Trainer.train(trainer)
    seconds = statistics.median(b - a for a, b in zip(starts[1:], starts[2:]))
    taken = torch.cuda.max_memory_reserved() / 1e9 if device == "cuda" else 0
    from toolkit.training import peak_memory
    sys.exit(f"RESULT {peak_memory(device)} {taken} {seconds}")

transformers.AutoModelForCausalLM.from_pretrained = from_pretrained
dpo_trainer.hash_module = lambda _: "random"  # minutes for the largest
trl.DPOTrainer.train = train
sys.path.insert(0, str(pathlib.Path(path).parent))
sys.argv = [path, "--max-steps", "20" if device == "cuda" else "5", *flags]
runpy.run_path(path, run_name="__main__")
"""


def needs(shape: tuple, lora: bool, gpu: bool, tokens: int = 223, answer_tokens: int = 157) -> tuple[float, float]:
    """Return the memory in GB and the floating-point operations of a step of 2 pairs, which are 223 tokens with the chapter's data.

    Weights in fp32, and gradients of what is trained (three quarters of the layers, or matrices of rank 16). A layer that is trained keeps about 14
    vectors of the hidden size and 5 of the intermediate size a token, with adapters 1.7 times as much; logits are kept three times. On a GPU, bf16 copies of the weights
    live until the backward pass, which frees them while it makes the gradients, so the larger of the two counts; a CPU counts both.
    Adafactor works on three copies of the largest matrix. The libraries take 0.5 GB.
    """
    layers, hidden, intermediate, vocabulary, parameters, tied, _ = shape
    embedding = hidden * vocabulary / 1e9
    head = 0 if tied else embedding
    blocks = parameters - embedding - head
    trained = 16 * layers * (9 * hidden + 3 * intermediate) / 1e9 if lora else 0.75 * blocks + head
    activations = (layers if lora else 0.75 * layers) * tokens * (14 * hidden + 5 * intermediate) * (2 if gpu else 4) * (1.7 if lora else 1) / 1e9
    forward = activations + 12 * answer_tokens * vocabulary / 1e9 + (2 * (parameters - head) if gpu else 0)
    backward = trained * (12 if lora else 4)
    optimizer = 0 if lora else 12 * max(head, hidden * intermediate / 1e9)
    memory = 4 * parameters + (max(forward, backward) if gpu else forward + backward) + optimizer + 0.5
    return memory, 1e9 * ((4 if lora else 5) * blocks * tokens + 4 * embedding * answer_tokens)


def measured(shape: tuple, lora: bool) -> str:
    """Train random weights of a shape for a few steps by step 3, and return what it took."""
    if not GPU and 1e9 * needs(shape, lora, gpu=False)[0] > psutil.virtual_memory().available:
        return "not measured: more than the memory here"
    with tempfile.TemporaryDirectory() as name:
        copy_chapter(Path(name))
        command = [sys.executable, "-c", RANDOM, Path(name) / "code/chapter02_dpo/3-train_dpo.py", json.dumps(shape), *["--lora"] * lora]
        log = subprocess.run(command, capture_output=True, text=True).stderr
    if "RESULT" not in log:
        return f"not measured: {(log.strip().splitlines() or ['no message'])[-1]}"
    memory, taken, seconds = map(float, log.rpartition("RESULT")[2].split())
    return f"measured here: {memory:.1f} GB{f', {taken:.1f} GB taken from the card' if GPU else ''}, {seconds:.2f} s a step"


def print_sizes() -> None:
    log = json.loads((ROOT / "output/dpo_results/training_log.json").read_text())
    if "SmolLM2-135M" not in log["base_model"]["model"]:
        sys.exit("error: output/dpo_results/ is of another model than SmolLM2-135M, for which the formula is checked; train that one first")
    lora, steps = log["settings"]["lora"], log["history"][-1]["step"]
    memory, operations = needs(SHAPES["SmolLM2-135M"], lora, GPU)
    seconds = log["history"][-1]["train_runtime"] / steps
    print(f"Here: {log['peak_memory_gb']:.1f} GB, by the formula {memory:.1f}; a step and its share of the rest {seconds:.2f} s, that is")
    print(f"{operations / seconds / 1e9:.0f} GFLOP/s, {operations / seconds / matrix_product_peak():.0%} of what a large matrix product reaches\n")
    for name, shape in SHAPES.items():
        for lora in (False, True):
            memory, operations = needs(shape, lora, gpu=True)
            # torch was seen to take a quarter more than it uses
            fits = [f"{card} GB" for card in (16, 24, 80) if memory < 0.75 * card]
            print(
                f"{name:14}{'LoRA' if lora else 'full':6}{memory:7.1f} GB {operations * 180 / 1e15:8.2f} PFLOP for 180 steps   fits {', '.join(fits) or 'none of 16, 24, 80 GB'}"
            )
            print(f"{'':14}on a CPU {needs(shape, lora, gpu=False)[0]:.1f} GB; {measured(shape, lora)}", flush=True)


def print_replies() -> None:
    """Time the generation of replies and their scores, in a batch and one at a time, by step 2's own functions."""
    from toolkit.judge import judge as judge_replies
    from toolkit.models import as_conversation, ask, load_model

    model, tokenizer = load_model(BASE_MODEL)
    claims = json.loads((ROOT / "output/heldout_data.json").read_text())[::3]
    prompts = [as_conversation(claim["prompt"]) for claim in claims]
    speeds, rates = [], []
    for size in (1, len(prompts)):
        parts = [slice(i, i + size) for i in range(0, len(prompts), size)]
        start = time.perf_counter()
        replies = [reply for part in parts for reply, _ in ask(model, tokenizer, prompts[part])]
        asked = time.perf_counter()
        for part in parts:
            judge_replies(model, tokenizer, claims[part], replies[part])
        seconds = asked - start, time.perf_counter() - asked
        speeds.append(sum(len(tokenizer(reply)["input_ids"]) for reply in replies) / seconds[0])
        rates.append(len(replies) / seconds[1])
        print(f"{len(prompts)} replies, {size} at a time: {seconds[0]:.1f} s, {speeds[-1]:.0f} tokens a second; scores {seconds[1]:.1f} s")
    print(f"ratio {speeds[1] / speeds[0]:.1f}, of the scores {rates[1] / rates[0]:.1f}; on {torch.get_num_threads()} threads")


def print_growth(counts: list[int]) -> None:
    """Print what step 3 needs for 10 steps on so many pairs, numbered since beyond 100 they come again, and for longer answers."""
    pairs = json.loads((ROOT / "output/preference_data.json").read_text())
    for count, times in [(count, 1) for count in counts] + [(100, 2), (100, 4)]:
        rows = [pairs[i % len(pairs)] for i in range(count)]
        rows = [
            {"prompt": f"{i}. {row['prompt']}"} | {key: " ".join([row[key]] * times) for key in ("chosen", "rejected")} for i, row in enumerate(rows)
        ]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            copy_chapter(folder)
            (folder / "output/control_data.json").unlink()
            (folder / "output/preference_data.json").write_text(json.dumps(rows))
            seconds, memory = run([sys.executable, str(folder / "code/chapter02_dpo/3-train_dpo.py"), "--max-steps", "10"], folder / "log")
            rows = json.loads((folder / "output/dpo_results/training_log.json").read_text())["history"]
            training = next(row["train_runtime"] for row in rows if "train_runtime" in row)
        print(f"{count:7,} pairs, answers {times} x: {seconds:6.0f} s, of which 10 steps {training:5.0f} s, {memory:.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--judge", type=int, metavar="STEPS")
    parser.add_argument("--whole", type=Path, metavar="CHECKOUT", help="time steps 1 to 4 against those of another version of this repository")
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--replies", action="store_true")
    parser.add_argument("--growth", type=int, nargs="+")
    flags = parser.parse_args()
    if flags.sizes or flags.replies:
        return print_sizes() if flags.sizes else print_replies()
    if flags.growth:
        return print_growth(flags.growth)
    if flags.whole:
        return print_whole(flags.whole, flags.repeats)

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
    print(f"{steps} steps of 2 pairs, {tokens:,.0f} tokens; a large matrix product reaches {peak / 1e9:,.0f} GFLOP/s")
    print(f"torch {torch.__version__}, on {torch.cuda.get_device_name() if GPU else 'the CPU'}")

    results: dict[str, list[tuple[float, float, float | None]]] = {}
    for repeat in range(flags.repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "data").mkdir()
            (folder / "data/train.json").write_text(json.dumps(pairs))
            copy_chapter(folder)
            for contestant, (command, model) in contestants(folder, steps).items():
                if flags.judge:
                    result = judged_run(command, model, folder, flags.judge)
                else:
                    result = (*run(command, folder / "log"), None)
                results.setdefault(contestant, []).append(result)
                print(f"  run {repeat + 1}: {contestant}: {result[0]:.0f} s, {result[1]:.2f} GB", flush=True)

    baseline = next(iter(results.values()))
    print(f"\n{'':22}{'seconds':>9}{'ratio':>8}{'spread':>14}{'s a pair':>10}{'GB':>7}{'ratio':>8}{'of peak':>9}{'s to +40':>10}")
    for contestant, runs in results.items():
        seconds, memory = (statistics.mean(result[number] for result in runs) for number in (0, 1))
        ratios = [mine[0] / its[0] for mine, its in zip(runs, baseline)]
        memory_ratio = memory / statistics.mean(gb for _, gb, _ in baseline)
        passed = ", ".join("never" if moment is None else f"{moment:.0f}" for _, _, moment in runs) if flags.judge else ""
        print(
            f"{contestant:22}{seconds:9.0f}{statistics.mean(ratios):8.0%}{f'{min(ratios):.0%}-{max(ratios):.0%}':>14}"
            f"{seconds / steps / 2:10.2f}{memory:7.2f}{memory_ratio:8.0%}{operations / seconds / peak:9.0%}{passed:>10}"
        )


if __name__ == "__main__":
    main()
