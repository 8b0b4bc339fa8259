"""Step 3: train the base model on the preference pairs with Direct Preference Optimization.

    python code/chapter02_dpo/3-train_dpo.py

Reads:  output/base_model/, output/preference_data.json, output/control_data.json, output/heldout_data.json
Writes: output/dpo_results/final_model/         the tuned model, loads with plain from_pretrained
        output/dpo_results/adapter/             with --lora: what was trained, without the base model
        output/dpo_results/training_log.json    every logged row, the settings, versions, seconds and peak memory
        output/dpo_results/training_curves.png  the same rows as a picture
Time:   6 minutes and 3.3 GB of memory with SmolLM2 on 2 cores; not measured on a GPU

DPO raises the probability of the chosen answer relative to the rejected one, measured against the untrained model (the reference):

    loss = -log sigmoid(beta * [(log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))])

(Rafailov et al. 2023, "Direct Preference Optimization", equation 7, https://arxiv.org/abs/2305.18290). Each answer's share of the bracket,
times beta, is called its reward; their difference is the margin. Before the first step all of them are 0 and the loss is ln 2 = 0.6931.

A supervised loss on the chosen answers, -log p per token, is added at a weight of 0.2 (as in Llama 3, Dubey et al. 2024, section 4.1.4,
https://arxiv.org/abs/2407.21783): it keeps the model's ordinary text healthy. The table and the curves show the DPO loss without it;
--loss takes one of the two alone.
"""

import argparse
import importlib.metadata
import json
import math
import os
import shutil
import signal
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
if "LOCAL_RANK" not in os.environ:  # started with plain python, where TRL trains on one GPU and refuses to start with more in sight
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "output"
BASE_MODEL = OUTPUT / "base_model"
RESULTS = OUTPUT / "dpo_results"
FINAL_MODEL = OUTPUT / "dpo_results" / "final_model"
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))  # more than one under accelerate launch
FIRST_PROCESS = os.environ.get("RANK", "0") == "0"  # the one that prints and writes

LOSSES = ["dpo", "sft", "dpo+sft"]
SFT_WEIGHT = 0.2  # of the supervised loss in dpo+sft


def option(default, help, choices=None):
    """A field of Config that becomes a command-line flag."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class Config:
    """The settings of a run. The defaults are the chapter's; each field is a flag."""

    beta: float = option(0.1, "how strongly the policy is held near the reference model; higher is closer")
    learning_rate: float = option(None, "peak learning rate, which falls to 0 in a straight line (default: 1e-5, with --lora 2e-4)")
    epochs: int = option(3, "passes over the pairs")
    batch_size: int = option(2, "pairs per device and step")
    loss: str = option("dpo+sft", "what is minimised: the DPO loss, the supervised loss (SFT) on the chosen answers, or both", LOSSES)
    lora: bool = option(False, "train small low-rank matrices beside the weights (LoRA), and merge them in at the end")
    seed: int = option(42, "seed of the order of the pairs")
    max_steps: int = option(-1, "stop after this many steps; -1: after the epochs")
    no_controls: bool = option(False, "leave out control_data.json, the pairs in which the user is right")
    resume: bool = option(False, "go on from the last checkpoint of a run that was interrupted")


EVAL_PAIRS = 20  # held-out pairs measured every 30 steps, half of each kind
PACKAGES = ["torch", "transformers", "trl", "datasets", "accelerate"]


def parse_flags() -> Config:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    for item in fields(Config):
        name, help, choices = "--" + item.name.replace("_", "-"), item.metadata["help"], item.metadata["choices"]
        if item.type is bool:
            parser.add_argument(name, action="store_true", help=help)
        else:
            default = "" if item.default is None else f" (default: {item.default})"
            parser.add_argument(name, type=item.type, choices=choices, default=item.default, help=help + default)
    config = Config(**vars(parser.parse_args()))
    if config.learning_rate is None:
        config.learning_rate = 2e-4 if config.lora else 1e-5
    for name in ("beta", "learning_rate", "epochs", "batch_size"):
        if not 0 < getattr(config, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    if config.max_steps == 0 or not 0 <= config.seed < 2**32:
        parser.error("--max-steps must not be 0, and --seed must lie between 0 and 2**32 - 1")
    return config


def fail(message: str) -> None:
    """End the script with one line on stderr and exit status 1."""
    sys.exit(f"error: {message}")


def write_json(path: Path, data: object) -> None:
    """Write data to path as UTF-8 JSON, whole or not at all: to a temporary sibling first, then renamed over path."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path, made_by: str) -> object:
    """Read a JSON file, or end the script with a line that names it and the script that makes it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fail(f"{path.relative_to(ROOT)} is missing; run {made_by} first")
    except ValueError as error:
        fail(f"{path.relative_to(ROOT)} is not valid JSON ({error}); mend it, or run {made_by} again")


def read_pairs(path: Path) -> list[dict]:
    """Read preference pairs: a JSON list of objects whose prompt, chosen and rejected are non-empty, different texts."""
    pairs = read_json(path, "1-generate_data.py")
    name = path.relative_to(ROOT)
    if not isinstance(pairs, list) or not pairs:
        fail(f'{name} must be a list of {{"prompt", "chosen", "rejected"}} objects')
    for number, pair in enumerate(pairs, 1):
        for key in ("prompt", "chosen", "rejected"):
            text = pair.get(key) if isinstance(pair, dict) else None
            if not isinstance(text, str) or not text.strip():
                fail(f'{name}, item {number}: "{key}" must be a text that is not empty')
        if pair["chosen"] == pair["rejected"]:
            fail(f"{name}, item {number}: chosen and rejected are the same text; make them differ")
    return pairs


def find_checkpoint() -> Path:
    """Return the newest checkpoint that is whole: trainer_state.json is written last."""
    whole = []
    for path in RESULTS.glob("checkpoint-*/trainer_state.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
            whole.append(path.parent)
        except ValueError:
            continue
    if not whole:
        fail("output/dpo_results/ holds no checkpoint to go on from; run without --resume")
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def remove_checkpoints() -> None:
    """Remove the checkpoints of a run that is finished or given up, and the model card that TRL writes beside them."""
    for path in [*RESULTS.glob("checkpoint-*"), RESULTS / "README.md"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def as_messages(pair: dict) -> dict:
    """Turn plain texts into chat messages. TRL applies the chat template to messages only, and 2 and 4 ask through the template."""
    return {
        "prompt": [{"role": "user", "content": pair["prompt"]}],
        "chosen": [{"role": "assistant", "content": pair["chosen"]}],
        "rejected": [{"role": "assistant", "content": pair["rejected"]}],
    }


def show_first_pair(row: dict, tokenizer) -> None:
    """Print one tokenized pair as the model sees it. The loss covers the tokens of the two answers, not those of the prompt."""
    print("\nThe first pair as the model sees it (the loss covers what stands after chosen and rejected):")
    for name in ("prompt", "chosen", "rejected"):
        print(f"  {name + ':':10}{tokenizer.decode(row[name + '_ids'])!r}")


def make_table():
    """Return the callback that prints the table, the progress bar and the estimate of the time."""
    from transformers import ProgressCallback

    class Table(ProgressCallback):
        columns = ["loss/dpo", "rewards/margins", "rewards/chosen", "rewards/rejected", "rewards/accuracies"]

        def on_train_begin(self, args, state, control, **kwargs):
            super().on_train_begin(args, state, control, **kwargs)
            self.first_step, self.start = state.global_step, time.time()
            self.training_bar.write("Step  Training Loss  Rewards/Margins  Rewards/Chosen  Rewards/Rejected  Rewards/Accuracies")

        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == self.first_step + 3:
                steps = state.max_steps - self.first_step
                minutes = (time.time() - self.start) / 3 * steps / 60
                self.training_bar.write(f"(about {minutes:.0f} min for these {steps} steps)")

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss/dpo" in logs and state.global_step % 5 == 0:
                row = [logs[name] for name in self.columns]
                self.training_bar.write("{:4d}  {:13.4f}  {:15.3f}  {:14.3f}  {:16.3f}  {:18.2f}".format(state.global_step, *row))

    return Table()


def draw_curves(history: list[dict], path: Path) -> None:
    """Draw loss, rewards, margin and accuracy against the step, training and held-out pairs, from the rows of the log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    train = [row for row in history if "loss/dpo" in row]
    heldout = [row for row in history if "eval_loss" in row]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    panels = {
        "DPO loss": [("loss", "loss/dpo", "C0")],
        "Rewards": [("chosen", "rewards/chosen", "C2"), ("rejected", "rewards/rejected", "C3")],
        "Reward margin (chosen minus rejected)": [("margin", "rewards/margins", "C0")],
        "Reward accuracy (share of pairs with chosen above rejected)": [("accuracy", "rewards/accuracies", "C0")],
    }
    for axis, (title, lines) in zip(axes.flat, panels.items()):
        for label, key, color in lines:
            axis.plot([row["step"] for row in train], [row[key] for row in train], color=color, label=f"{label}, training")
            axis.plot([row["step"] for row in heldout], [row["eval_" + key] for row in heldout], "o--", color=color, label=f"{label}, held-out")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0, 0].axhline(math.log(2), color="grey", linestyle=":", label="ln 2: has learned nothing")
    for axis in axes.flat:
        axis.legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("step")
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)


def peak_memory(device: str) -> float:
    """Return the peak memory of this process in GB: of the GPU on CUDA, of the machine elsewhere."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def main() -> None:
    config = parse_flags()
    start = time.time()
    if not FIRST_PROCESS:
        sys.stdout = open(os.devnull, "w")

    # Data
    pairs = read_pairs(OUTPUT / "preference_data.json")
    with_controls = not config.no_controls and (OUTPUT / "control_data.json").exists()
    controls = read_pairs(OUTPUT / "control_data.json") if with_controls else []
    heldout = read_pairs(OUTPUT / "heldout_data.json")
    if not (BASE_MODEL / "source.json").exists():
        fail("output/base_model/ is missing; run 0-download_model.py first")
    checkpoint = find_checkpoint() if config.resume else None

    # Model. The weights stay in fp32, in which small updates are not rounded away; bf16 is for the arithmetic, where the hardware has it.
    print("Loading base model ...")
    import datasets
    import torch
    import transformers
    import trl.trainer.utils
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Trainer(DPOTrainer):
        """DPOTrainer with the supervised loss beside the DPO loss; it logs both."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = []
            dpo = super().compute_loss(lambda **batch: outputs.append(model(**batch)) or outputs[0], inputs)
            chosen_log_p, _ = outputs[0].log_probs.chunk(2)  # TRL stacks the chosen answers upon the rejected ones
            chosen_mask, _ = inputs["completion_mask"].chunk(2)
            tokens = self.accelerator.gather(chosen_mask.sum()).float().mean()  # a token counts the same in every process
            sft = -chosen_log_p.sum() / tokens
            metrics = self._metrics["train" if model.training else "eval"]
            for name, loss in {"loss/dpo": dpo, "loss/sft": sft}.items():
                metrics[name].append(self.accelerator.gather(loss.detach()).mean().item())
            return {"dpo": dpo, "sft": sft, "dpo+sft": dpo + SFT_WEIGHT * sft}[config.loss]

    transformers.logging.set_verbosity_error()  # the libraries' notices would bury the table
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    trl.trainer.utils._use_triton = lambda device: True  # score the answers' tokens only, also where TRL scores those of the prompt

    # Config
    args = DPOConfig(
        output_dir=RESULTS,
        beta=config.beta,
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=max(1, 4 // PROCESSES),  # 4 at a time divide EVAL_PAIRS, since TRL's metrics are means over batches
        seed=config.seed,
        logging_steps=5,
        logging_first_step=True,
        save_steps=20,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=30,
        use_cpu=device == "cpu",
        bf16=device == "cuda" and torch.cuda.is_bf16_supported(),
        activation_checkpointing=False,  # saves memory that short rows do not need, and costs a third of the time
        # One process runs the reference model once, before the first step, and keeps no second model. Several cannot (TRL 1.16): each looks
        # for what the first has written in a temporary folder of its own.
        precompute_ref_log_probs=PROCESSES == 1,
        max_length=None,  # no pair is cut or left out, however long
        dataloader_pin_memory=device == "cuda",
        report_to="none",
        disable_tqdm=True,  # Trainer's own bar and printer make way for the table below
    )

    # Trainer
    train_rows = [as_messages(pair) for pair in pairs + controls]
    eval_rows = [as_messages(pair) for pair in heldout[:: max(1, len(heldout) // EVAL_PAIRS)]]
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(train_rows),
        eval_dataset=Dataset.from_list(eval_rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if config.lora else None,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if FIRST_PROCESS:
        trainer.add_callback(make_table())
    show_first_pair(trainer.train_dataset[0], tokenizer)
    tokens = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset)
    steps = config.max_steps if config.max_steps > 0 else config.epochs * math.ceil(len(train_rows) / config.batch_size / PROCESSES)
    print(f"\n{len(pairs)} pairs in which the user is wrong, {len(controls)} in which the user is right; {tokens:,} tokens an epoch")
    print(f"{steps} steps on {device}")

    # Train
    print("Starting DPO training... (watch loss and reward margins)")
    if checkpoint is None and FIRST_PROCESS:
        remove_checkpoints()

    def ended(*_):
        sys.exit(f"\nerror: a process of this run was ended at step {trainer.state.global_step}; go on from the last checkpoint with --resume")

    signal.signal(signal.SIGTERM, ended)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        if PROCESSES == 1:
            raise
        print(error, file=sys.stderr)  # as a rule: the connection to another process broke
        ended()

    history = trainer.state.log_history
    for row in history:
        if not all(math.isfinite(value) for value in row.values()):
            fail(f"training diverged by step {row['step']}; lower --learning-rate. Nothing was saved, an earlier final_model is still there")

    # Save
    temporary = RESULTS / ".final_model.tmp"
    if FIRST_PROCESS:
        shutil.rmtree(temporary, ignore_errors=True)
    if config.lora:
        trainer.save_model(RESULTS / "adapter")
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model(temporary)  # a call for all processes: with FSDP each holds a part of the weights
    if not FIRST_PROCESS:
        return
    for folder in (temporary, RESULTS / "adapter"):
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody needs
    shutil.copyfile(BASE_MODEL / "source.json", temporary / "source.json")
    shutil.rmtree(FINAL_MODEL, ignore_errors=True)
    if not config.lora:
        shutil.rmtree(RESULTS / "adapter", ignore_errors=True)
    temporary.rename(FINAL_MODEL)
    remove_checkpoints()
    log = {
        "settings": asdict(config),
        "base_model": read_json(BASE_MODEL / "source.json", "0-download_model.py"),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": device,
        "seconds": round(time.time() - start, 1),
        "peak_memory_gb": round(peak_memory(device), 2),
        "history": history,
    }
    write_json(RESULTS / "training_log.json", log)
    draw_curves(history, RESULTS / "training_curves.png")
    print(f"Took {log['seconds']:.0f} s and {log['peak_memory_gb']:.1f} GB of memory. Curves: output/dpo_results/training_curves.png")
    print("Done! Saved to ./output/dpo_results/final_model.")


if __name__ == "__main__":
    main()
