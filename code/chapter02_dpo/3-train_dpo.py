"""Step 3: train the base model on the preference pairs with Direct Preference Optimization.

    python code/chapter02_dpo/3-train_dpo.py

Reads:  output/base_model/, output/preference_data.json, output/control_data.json, output/heldout_data.json
Writes: output/dpo_results/final_model/         the tuned model, loads with plain from_pretrained
        output/dpo_results/adapter/             with --lora: what was trained, without the base model
        output/dpo_results/training_log.json    every logged row, the settings, versions, seconds and peak memory
        output/dpo_results/training_curves.png  the same rows as a picture
Time:   5 to 9 minutes and 1.9 GB of memory with SmolLM2 on 2 cores; 1 to 2 minutes on an H200 or H100

DPO raises the probability of the chosen answer relative to the rejected one, measured against the untrained model (the reference):

    loss = -log sigmoid(beta * [(log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))])

(Rafailov et al. 2023, "Direct Preference Optimization", equation 7, https://arxiv.org/abs/2305.18290). Each answer's share of the bracket,
times beta, is called its reward; their difference is the margin. Before the first step all of them are 0 and the loss is ln 2 = 0.6931.

A supervised loss on the chosen answers, -log p per token, is added at a weight of 0.2 (as in Llama 3, Dubey et al. 2024, section 4.1.4,
https://arxiv.org/abs/2407.21783): it keeps the model's ordinary text healthy. The table and the curves show the DPO loss without it;
--loss takes one of the two alone.
"""

import argparse
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
if "LOCAL_RANK" not in os.environ:  # started with plain python, where TRL trains on one GPU and refuses to start with more in sight
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "output"
BASE_MODEL = OUTPUT / "base_model"
RESULTS = OUTPUT / "dpo_results"
FINAL_MODEL = OUTPUT / "dpo_results" / "final_model"
RUN = RESULTS / "run.json"  # settings and data of the run that the checkpoints are of
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))  # more than one under accelerate launch
FIRST_PROCESS = os.environ.get("RANK", "0") == "0"  # the one that prints and writes

ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
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
    seed: int = option(42, "seed of the order of the pairs, and with --lora of its matrices' first values")
    max_steps: int = option(-1, "stop after this many steps; -1: after the epochs")
    no_controls: bool = option(False, "leave out control_data.json, the pairs in which the user is right")
    resume: bool = option(False, "go on from the last checkpoint of a run that was interrupted")


LONGEST_ROW = 4096  # tokens of a batch, padding included, up to which it is given to the model as one row; attention grows with the square
EVAL_PAIRS = 20  # held-out pairs measured every 30 steps and at the end, half of each kind
PACKAGES = ["torch", "transformers", "trl", "peft", "datasets", "accelerate"]
PANELS = {  # title and unit: (what, its name in the log, colour) of each line
    "DPO loss (nats)": [("loss", "loss/dpo", "C0")],
    "Rewards (beta × nats)": [("chosen", "rewards/chosen", "C2"), ("rejected", "rewards/rejected", "C3")],
    "Reward margin, chosen minus rejected (beta × nats)": [("margin", "rewards/margins", "C0")],
    "Reward accuracy (share of pairs with a margin above 0)": [("accuracy", "rewards/accuracies", "C0")],
}
NOTICE = (
    "What to notice: the loss of the training pairs goes on to almost 0 when that of the held-out pairs has stopped falling; the gap is what was\n"
    "learned by heart. Look whether the chosen reward rises, or the rejected one only falls faster. All of this can look perfect on a broken model."
)


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


def interrupted(*_) -> None:
    """End the script at Ctrl-C. As an exception, it could be swallowed by a library that is just being imported."""
    sys.stdout.flush()
    print("\nInterrupted. What was finished before is still there.", file=sys.stderr, flush=True)
    os._exit(130)


def write(path: Path, data: object) -> None:
    """Write a text as it is, or anything else as JSON, in UTF-8, whole or not at all: to a temporary sibling, then renamed over path."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path, made_by: str) -> object:
    """Read a JSON file in any encoding of Unicode, or end the script with a line that names it and the script that makes it."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        fail(f"{path.relative_to(ROOT)} is missing; run {made_by} first")
    except (ValueError, RecursionError) as error:
        mend = "if these are JSON Lines, put them into one list, [ ... ], with commas" if "Extra data" in str(error) else "mend it"
        fail(f"{path.relative_to(ROOT)} is not valid JSON ({error}); {mend}, or run {made_by} again")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_flag(source: dict) -> str:
    """Return what 0-download_model.py --model is given to get the model of a source.json: the path of a local folder, or its id."""
    return shlex.quote(source["source"] if Path(source["source"]).is_absolute() else source["model"])


def check_model(folder: Path, made_by: str) -> dict:
    """Return the source.json of a model folder, or end the script: the folder must be whole, and its weights those that were recorded."""
    name, old = folder.relative_to(ROOT), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # a kill hit the moment in which a new folder took its place
    if not (folder / "source.json").exists():
        fail(f"{name}/ is missing; run {made_by} first")
    source = read_json(folder / "source.json", made_by)
    try:
        digests = dict(source.get("tuned_sha256", source["sha256"]))
        again = f"run {made_by} --model {model_flag(source)} --force" if folder == BASE_MODEL else f"run {made_by} again"
    except (AttributeError, KeyError, TypeError, ValueError):
        fail(f"{name}/source.json is damaged; run {made_by}{' --force' if folder == BASE_MODEL else ''} again")
    tokenizer = "tokenizer.model" if (folder / "tokenizer.model").exists() else "tokenizer.json"
    for file in ("config.json", "tokenizer_config.json", tokenizer):
        if not (folder / file).exists():
            fail(f"{name}/{file} is missing; {again}")
    for file, digest in digests.items():
        if not (folder / file).exists() or sha256(folder / file) != digest:
            fail(f"{name}/{file} is not what was saved there (its sha256 differs); {again}")
    return source


def special_tokens(tokenizer) -> list[str]:
    """Return the tokens that are no text to the model, such as the end of a turn."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def read_pairs(path: Path, tokenizer, longest: int) -> list[dict]:
    """Read preference pairs as chat messages, or end the script with up to ten lines, one for each item that cannot be trained on.

    The file is a JSON list of objects with prompt, chosen and rejected. Each is a text, or a list of messages {"role", "content"}; chosen and
    rejected may repeat the messages of the prompt, as in many data sets of the hub. TRL applies the chat template to messages only.
    """
    from jinja2 import TemplateError

    rows = read_json(path, "1-generate_data.py")
    name = path.relative_to(ROOT)
    if not isinstance(rows, list) or not rows:
        fail(f'{name} must be a list of {{"prompt", "chosen", "rejected"}} objects that is not empty; mend it, or run 1-generate_data.py again')
    special, pairs, problems, numbers = special_tokens(tokenizer), [], [], {}
    for number, row in enumerate(rows, 1):
        try:
            pair = as_messages(row, special)
            tokens = [len(tokenizer.apply_chat_template(pair["prompt"] + pair[key], return_dict=True)["input_ids"]) for key in ("chosen", "rejected")]
            if max(tokens) > longest:
                raise ValueError(f"has {max(tokens):,} tokens, and the model reads at most {longest:,}; shorten it")
            prompt, chosen, rejected = (str(pair[key]) for key in ROLES)
            if other := numbers.get((prompt, rejected, chosen)):
                raise ValueError(f"contradicts item {other}, where chosen and rejected are exchanged; take one of them out")
            numbers[prompt, chosen, rejected] = number
            pairs.append(pair)
        except (ValueError, TemplateError) as error:
            problems.append(f"{name}, item {number}: {error}")
    if problems:
        if len(problems) > 10:
            problems[9:] = [f"{name} has {len(problems) - 9} more items that cannot be trained on"]
        fail("\nerror: ".join(problems))
    return pairs


def as_messages(row: object, special: list[str]) -> dict:
    """Return an item of a file of pairs as three lists of chat messages, or raise ValueError with what is wrong with it and the mend."""
    if not isinstance(row, dict):
        raise ValueError(f"must be an object with prompt, chosen and rejected, and is {json.dumps(row)[:40]}")
    pair = {}
    for key, role in ROLES.items():
        if key not in row:
            raise ValueError(f'has no "{key}", only {json.dumps(list(row))[:80]}; rename or add it')
        messages = [{"role": role, "content": row[key]}] if isinstance(row[key], str) else row[key]
        try:
            texts = [message["content"] for message in messages]
            whole = all(isinstance(text, str) and text.encode().strip() for text in texts) and messages[-1]["role"] == role
            whole = whole and all(message["role"] in ("system", "user", "assistant") for message in messages)
        except (KeyError, IndexError, TypeError, UnicodeEncodeError):
            whole = False
        if not whole:
            raise ValueError(f'"{key}" must be a text that is not empty, or a list of such messages whose last is of the {role}')
        for token in special:
            if any(token in text for text in texts):
                raise ValueError(f'"{key}" holds {token}, which is no text to the model; take it out')
        pair[key] = [{"role": message["role"], "content": message["content"]} for message in messages]
    for key in ("chosen", "rejected"):
        if pair[key][:-1] not in ([], pair["prompt"]):
            raise ValueError(f'"{key}" must be one answer, or begin with the messages of "prompt"')
        pair[key] = pair[key][-1:]
    if pair["chosen"] == pair["rejected"]:
        raise ValueError("chosen and rejected are the same text; make them differ")
    return pair


def replace_folder(new: Path, folder: Path) -> None:
    """Put a new folder, whole and on the disk, in the place of another."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.sync()
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def whole_checkpoints() -> list[Path]:
    """Return the checkpoints that were written to their end."""
    whole = []
    for path in RESULTS.glob("checkpoint-*/trainer_state.json"):  # written last
        try:
            json.loads(path.read_text(encoding="utf-8"))
            whole.append(path.parent)
        except ValueError:
            continue
    return whole


def find_checkpoint(run: dict) -> Path:
    """Return the newest checkpoint that is whole, or end the script if there is none, or if it is of another run than this one."""
    if not (whole := whole_checkpoints()):
        fail("output/dpo_results/ holds no checkpoint to go on from; run without --resume")
    before = read_json(RUN, "3-train_dpo.py without --resume")
    changed = [f"{name} (was {before.get(name)}, is {value})" for name, value in run.items() if before.get(name) != value]
    if changed:
        fail(f"the checkpoint is of a run with other settings or data: {', '.join(changed)}; use those again, or run without --resume")
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def remove_checkpoints() -> None:
    """Remove the checkpoints of a run that is finished or given up, and the model card that TRL writes beside them."""
    for path in [RUN, *RESULTS.glob("checkpoint-*"), RESULTS / "README.md"]:  # without the first no checkpoint is gone on from
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def lock_results():
    """Return a lock on output/dpo_results/, which the system gives back when this process ends, or end the script if another run has it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    lock = open(RESULTS / ".lock", "a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        fail(f"another run trains into output/dpo_results/, process {lock.read()}; wait for it, or end it")
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def show_first_pair(row: dict, tokenizer) -> None:
    """Print one tokenized pair as the model sees it. The loss covers the tokens of the two answers, not those of the prompt."""
    print("\nThe first pair as the model sees it (the loss covers what stands after chosen and rejected):")
    for name in ("prompt", "chosen", "rejected"):
        print(f"  {name + ':':10}{tokenizer.decode(row[name + '_ids'])!r}")


def answer_log_probs(model, input_ids, attention_mask, labels, **_):
    """Return log p of each token of the answers, as TRL's loss reads it: (2 * pairs, length - 1), 0 where labels is -100.

    TRL passes rows of prompt + chosen stacked upon rows of prompt + rejected, padded on the right: (2 * pairs, length). The model gets all in
    one row without padding, in which a token sees what stands before it in its own conversation. So a prompt is computed once for both answers
    of its pair, and what all conversations begin with, as a rule the system's turn, once for the batch.
    """
    import torch
    import torch.nn.functional as F

    pairs = len(input_ids) // 2
    answers = labels != -100
    own = answers | F.pad(answers[:, 1:], (0, 1))  # an answer, and the token before it, which predicts the first of the answer
    shared = (input_ids == input_ids[0]).all(dim=0).cumprod(dim=0).bool() & ~own.any(dim=0)
    keep = own.clone()
    keep[:pairs] |= attention_mask[:pairs].bool() & ~shared
    keep[0] |= shared
    row, position = keep.nonzero(as_tuple=True)
    pair, is_own = row % pairs, own[keep]
    same = shared[position] | torch.where(is_own, row == row[:, None], pair == pair[:, None])  # (query, key): of the same conversation
    logits = model(
        input_ids=input_ids[keep][None],
        attention_mask=(same & (position <= position[:, None]))[None, None],
        position_ids=position[None],
        use_cache=False,
        logits_to_keep=is_own.nonzero().flatten(),
    ).logits[0]
    log_probs = -F.cross_entropy(logits, F.pad(labels[:, 1:], (0, 1), value=-100)[own], reduction="none")
    log_probs = log_probs.new_zeros(labels.shape).masked_scatter(own, log_probs)[:, :-1]
    not_computed = torch.zeros_like(log_probs, dtype=torch.bool)
    return SimpleNamespace(log_probs=log_probs, entropy=not_computed, mean_logits=not_computed, is_top1=not_computed)


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


def make_trainer(config: Config, items: list[str], **arguments):
    """Return TRL's DPOTrainer with the supervised loss beside the DPO loss; it stops when training diverges, and saves at Ctrl-C.

    items names each row of the training data, to say at which it diverged.
    """
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOTrainer

    class Trainer(DPOTrainer):
        interrupted, batch = False, []

        def scorer(self, model, inputs):
            """Return what computes the log-probabilities: TRL's own way if the attention takes no mask, or one row would be too long for it."""
            settings = self.model.config
            plain = set(getattr(settings, "layer_types", None) or ["full_attention"]) == {"full_attention"}
            short = inputs["input_ids"].numel() <= LONGEST_ROW
            return partial(answer_log_probs, model) if plain and short and settings._attn_implementation == "sdpa" else model

        def compute_ref_log_probs(self, model, inputs):
            scores = super().compute_ref_log_probs(self.scorer(model, inputs), inputs)
            if PROCESSES > 1 or all(score.isfinite().all() for score in scores):
                return scores
            return super().compute_ref_log_probs(model, inputs)  # in one row, a pair on which the model gives NaN spoils the others too

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs, score = [], self.scorer(model, inputs)
            dpo = super().compute_loss(lambda **batch: outputs.append(score(**batch)) or outputs[0], inputs)
            chosen_log_p, _ = outputs[0].log_probs.chunk(2)  # TRL stacks the chosen answers upon the rejected ones
            chosen_mask, _ = inputs["completion_mask"].chunk(2)
            tokens = self.accelerator.gather(chosen_mask.sum()).float().mean()  # a token counts the same in every process
            sft = -chosen_log_p.sum() / tokens
            metrics = self._metrics["train" if model.training else "eval"]
            for name in ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"):
                del metrics[name]  # they would need another pass over all logits
            for name, loss in {"loss/dpo": dpo, "loss/sft": sft}.items():
                metrics[name].append(self.accelerator.gather(loss.detach()).mean().item())
            loss = {"dpo": dpo, "sft": sft, "dpo+sft": dpo + SFT_WEIGHT * sft}[config.loss]
            if model.training:
                self.batch = inputs["input_ids"]
                if not loss.isfinite():
                    self.diverged(self.state.global_step + 1)
            return loss

        def diverged(self, step: int) -> None:
            batch = [ids.tolist() for ids in self.batch]
            rows = ((item, row["prompt_ids"] + row["chosen_ids"]) for item, row in zip(items, self.train_dataset))
            names = [item for item, row in rows if any(ids[: len(row)] == row for ids in batch)]
            kept = "".join(f"; {path.name} is kept" for path in RESULTS.glob("checkpoint-*"))
            fail(f"training diverged at step {step}, on {' and '.join(names)}; lower --learning-rate, or mend them{kept}")

    class Guard(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if trainer.interrupted:
                control.should_save = control.should_training_stop = True
            if control.should_save and not all(weight.isfinite().all() for weight in model.parameters() if weight.requires_grad):
                trainer.diverged(state.global_step)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not all(map(math.isfinite, logs.values())):
                trainer.diverged(state.global_step)

    trainer = Trainer(**arguments)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Guard())
    trainer.table = make_table()
    if FIRST_PROCESS:
        trainer.add_callback(trainer.table)
    return trainer


def draw_panel(axis, title: str, history: list[dict]) -> None:
    """Draw one of PANELS against the step from the rows of the log: training pairs as a line, held-out pairs as dashes and dots."""
    for label, key, color in PANELS[title]:
        for prefix, style, of in (("", "-", "training"), ("eval_", "o--", "held-out")):
            rows = [row for row in history if prefix + key in row]
            axis.plot([row["step"] for row in rows], [row[prefix + key] for row in rows], style, color=color, label=f"{label}, {of}")
    if "loss" in title:
        axis.axhline(math.log(2), color="grey", linestyle=":", label="ln 2: has learned nothing")
    axis.set(title=title, xlabel="step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def draw_curves(history: list[dict], path: Path) -> None:
    """Draw all PANELS, and what to notice, into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, title in zip(axes.flat, PANELS):
        draw_panel(axis, title, history)
    figure.supxlabel(NOTICE, fontsize=10, wrap=True)
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


def explain(error: Exception) -> None:
    """End the script with one line if an error is one of those that a reader can mend."""
    text = str(error)
    if isinstance(error, MemoryError) or re.search("out of memory|not enough memory|allocate memory", text):
        config = parse_flags()
        lower = f"lower --batch-size from {config.batch_size} to {config.batch_size // 2}"
        fail(f"out of memory; {lower if config.batch_size > 1 else 'shorten the longest pairs' if config.lora else 'train with --lora'}")
    again = f"mend that and run this again{' with --resume' if RUN.exists() and whole_checkpoints() else ''}"
    if isinstance(error, OSError):  # a full disk, a folder that may not be written to
        fail(f"{error.filename or 'output/'}: {error.strerror or text.splitlines()[0]}; {again}")
    if re.search("No space left|failed writing file|unexpected pos", text):
        fail(f"output/dpo_results/: No space left on device; {again}")
    if isinstance(error, ValueError) and "precision" in text:
        fail(f"{text.splitlines()[0]}; set ACCELERATE_MIXED_PRECISION to bf16, or leave it out")
    if re.search("weights_only|Error while deserializing|PytorchStreamReader|Ran out of input|valid checkpoint", text):
        fail("the checkpoint in output/dpo_results/ is damaged; run without --resume")


def main() -> None:
    config = parse_flags()
    start = time.time()
    if not FIRST_PROCESS:
        sys.stdout = open(os.devnull, "w")
    source = check_model(BASE_MODEL, "0-download_model.py")
    lock = lock_results() if FIRST_PROCESS else None  # noqa: F841  held while this variable lives

    # Model. The weights stay in fp32, in which small updates are not rounded away; bf16 is for the arithmetic, where the hardware has it.
    print("Loading base model ...")
    import datasets
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig

    transformers.logging.set_verbosity_error()  # the libraries' notices would bury the table
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32, use_safetensors=True)
    model.get_input_embeddings().requires_grad_(False)  # a fifth of the small model's weights; a step is a tenth shorter without them

    # Data
    names = ["preference_data.json", "heldout_data.json"]
    if not config.no_controls and (OUTPUT / "control_data.json").exists():
        names.insert(1, "control_data.json")
    *train, heldout = (read_pairs(OUTPUT / name, tokenizer, model.config.max_position_embeddings) for name in names)
    pairs, controls = train[0], sum(train[1:], [])
    train_rows, eval_rows = pairs + controls, heldout[:: max(1, len(heldout) // EVAL_PAIRS)]
    if config.batch_size > len(train_rows):
        fail(f"--batch-size {config.batch_size} is more than the {len(train_rows)} pairs there are; lower it")

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
        # Adafactor keeps a row and a column for each matrix, where AdamW keeps two more matrices; it cannot move weights that FSDP has split.
        optim="adamw_torch" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else "adafactor",
        use_cpu=device == "cpu",
        bf16=device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
        activation_checkpointing=False,  # saves memory that short rows do not need, and costs a third of the time
        # One process runs the reference model once, before the first step, and keeps no second model. Several cannot (TRL 1.16): each looks
        # for what the first has written in a temporary folder of its own.
        precompute_ref_log_probs=PROCESSES == 1,
        max_length=None,  # no pair is cut or left out, however long
        dataloader_pin_memory=device == "cuda",
        report_to="none",
        disable_tqdm=True,  # Trainer's own bar and printer make way for the table below
    )
    run = asdict(config) | {name: sha256(OUTPUT / name)[:12] for name in names} | {"processes": PROCESSES, "base_model": source["sha256"]}
    run["mixed_precision"] = args.mixed_precision  # that of the GPU, or of ACCELERATE_MIXED_PRECISION; "no" is fp32
    del run["resume"]
    checkpoint = find_checkpoint(run) if config.resume else None

    # Trainer
    trainer = make_trainer(
        config,
        [f"output/{name} item {number}" for name, data in zip(names, train) for number in range(1, len(data) + 1)],
        model=model,
        args=args,
        train_dataset=Dataset.from_list(train_rows),
        eval_dataset=Dataset.from_list(eval_rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if config.lora else None,
    )
    show_first_pair(trainer.train_dataset[0], tokenizer)
    tokens = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset)
    steps = config.max_steps if config.max_steps > 0 else config.epochs * math.ceil(len(train_rows) / config.batch_size / PROCESSES)
    print(f"\n{len(pairs)} pairs of preference_data.json, {len(controls)} of control_data.json; {tokens:,} tokens an epoch")
    print(f"{steps} steps on {device}")

    # Train
    print("Starting DPO training... (watch loss and reward margins)")
    if checkpoint is None and FIRST_PROCESS:
        remove_checkpoints()
        write(RUN, run)

    def interrupt(*_):
        trainer.interrupted = True
        signal.signal(signal.SIGINT, interrupted)  # a second Ctrl-C does not wait for the end of the step

    def ended(*_):
        again = "go on from the last checkpoint with --resume" if whole_checkpoints() else "mend what stands above, and run this again"
        sys.exit(f"\nerror: a process of this run was ended at step {trainer.state.global_step}; {again}")

    if PROCESSES == 1:  # several would have to agree on the step
        signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, ended)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        if PROCESSES == 1:
            raise
        explain(error)
        print(error, file=sys.stderr)  # as a rule: the connection to another process broke
        ended()
    finally:
        if PROCESSES == 1:
            signal.signal(signal.SIGINT, interrupted)
        if trainer.table.training_bar:
            trainer.table.training_bar.close()  # or its last line stands below the message

    if trainer.interrupted:
        print(f"\nInterrupted. Step {trainer.state.global_step} is saved; go on from there with --resume.", file=sys.stderr)
        sys.exit(130)

    # Save
    temporary, adapter = RESULTS / ".final_model.tmp", RESULTS / ".adapter.tmp"
    if FIRST_PROCESS:
        for folder in (temporary, adapter):
            shutil.rmtree(folder, ignore_errors=True)
    if config.lora:
        trainer.save_model(adapter)
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model(temporary)  # a call for all processes: with FSDP each holds a part of the weights
    trainer.accelerator.end_training()  # closes the connections; a process that ends with them open may abort, and take the first one down
    if not FIRST_PROCESS:
        return
    for folder in (temporary, adapter):
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody needs
    write(temporary / "source.json", source | {"tuned_sha256": {path.name: sha256(path) for path in temporary.glob("*.safetensors")}})
    replace_folder(temporary, FINAL_MODEL)
    if config.lora:
        replace_folder(adapter, RESULTS / "adapter")
    else:
        shutil.rmtree(RESULTS / "adapter", ignore_errors=True)
    history = trainer.state.log_history
    log = {
        "settings": asdict(config),
        "processes": PROCESSES,
        "base_model": source,
        "data": {name: run[name] for name in names},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": device,
        "mixed_precision": args.mixed_precision,
        "seconds": round(time.time() - start, 1),
        "peak_memory_gb": round(peak_memory(device), 2),
        "history": history,
    }
    write(RESULTS / "training_log.json", log)
    draw_curves(history, RESULTS / "training_curves.png")
    remove_checkpoints()
    print(f"Took {log['seconds']:.0f} s and {log['peak_memory_gb']:.1f} GB of memory. Curves: output/dpo_results/training_curves.png")
    print("Done! Saved to ./output/dpo_results/final_model.")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupted if FIRST_PROCESS else signal.SIG_DFL)
    try:
        main()
    except Exception as error:
        explain(error)
        raise
