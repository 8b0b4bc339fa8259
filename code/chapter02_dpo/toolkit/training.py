"""The trainer's own parts: the supervised loss beside the DPO loss, prompts computed once, the table, and what watches over a training.

Imports torch and TRL at once: import it when the flags are read.
"""

import math
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from accelerate.utils import is_peft_model
from transformers import DynamicCache, PrinterCallback, ProgressCallback, TrainerCallback, TrainerState
from transformers.training_args import OptimizerNames
from trl import DPOTrainer

from toolkit.checkpoints import explain, start_anew, whole_checkpoints
from toolkit.console import FIRST_PROCESS, fail, interrupted
from toolkit.files import replace_folder, weights_sha256, write
from toolkit.models import attention_only
from toolkit.paths import ADAPTER, FINAL_MODEL, RESULTS

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))  # more than one under accelerate launch
LONGEST_ROW = 4096  # tokens of a batch, padding included, up to which it is given to the model as one row; attention grows with the square


# ---- The losses ----------------------------------------------------------------------------------------------------------------------
class DPOWithSFTTrainer(DPOTrainer):
    """TRL's DPOTrainer, which also knows the supervised loss (SFT) on the chosen answers, and logs both.

    losses holds the weight of each in what is minimised: {"dpo": 1.0, "sft": 0.05}. run says what the checkpoints are of. items names each row
    of the training data, to say on which a training diverged. Ctrl-C saves a checkpoint and ends the script.

    The sum is our own, not TRL's loss_type=["sigmoid", "sft"]: that logs the total only, and in several processes weighs tokens differently.
    """

    def __init__(self, losses: dict[str, float], items: list[str], run: dict, **arguments):
        self.losses, self.items, self.run = losses, items, run
        self.interrupted, self.batch = False, []
        super().__init__(**arguments)
        self.remove_callback(PrinterCallback)
        self.add_callback(Guard(self))
        self.table = Table()
        if FIRST_PROCESS:
            self.add_callback(self.table)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs, score = [], self.scorer(model, inputs)
        dpo = super().compute_loss(lambda **batch: outputs.append(score(**batch)) or outputs[0], inputs)
        chosen_log_p, _ = outputs[0].log_probs.chunk(2)  # TRL stacks the chosen answers upon the rejected ones
        chosen_mask, _ = inputs["completion_mask"].chunk(2)
        tokens = self.accelerator.gather(chosen_mask.sum()).float().mean()  # a token counts the same in every process
        parts = {"dpo": dpo, "sft": -chosen_log_p.sum() / tokens}
        metrics = self._metrics["train" if model.training else "eval"]
        for name in ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"):
            del metrics[name]  # they would need another pass over all logits
        for name, part in parts.items():
            metrics[f"loss/{name}"].append(self.accelerator.gather(part.detach()).mean().item())
        loss = sum(weight * parts[name] for name, weight in self.losses.items())
        if model.training:
            self.batch = inputs["input_ids"]
            if not loss.isfinite():
                self.diverged(self.state.global_step + 1)
        return loss

    def log(self, logs, start_time=None):
        for name in self.eval_dataset or ():  # TRL names only the losses of several sets of held-out pairs apart
            if f"eval_{name}_loss" in logs:
                metrics = self._metrics["eval"]
                for key in list(metrics):
                    metrics[f"{name}_{key}"] = metrics.pop(key)
        super().log(logs, start_time)

    def scorer(self, model, inputs):
        """Return what computes the log-probabilities: TRL's own way if a layer is no attention or does not reach back to the beginning, if the
        attention takes no mask, or if one row would be too long for it."""
        settings, ids = self.model.config, inputs["input_ids"]
        plain = attention_only(DynamicCache(config=settings), ids.shape[1]) and settings._attn_implementation == "sdpa"
        return partial(answer_log_probs, model) if plain and ids.numel() <= LONGEST_ROW else model

    def compute_ref_log_probs(self, model, inputs):
        scores = super().compute_ref_log_probs(self.scorer(model, inputs), inputs)
        if PROCESSES > 1 or all(score.isfinite().all() for score in scores):
            return scores
        return super().compute_ref_log_probs(model, inputs)  # in one row, a pair on which the model gives NaN spoils the others too

    def diverged(self, step: int) -> None:
        """End the script with a line that names the step and the pairs of the last batch."""
        batch = [ids.tolist() for ids in self.batch]
        rows = ((item, row["prompt_ids"] + row["chosen_ids"]) for item, row in zip(self.items, self.train_dataset))
        names = [item for item, row in rows if any(ids[: len(row)] == row for ids in batch)]
        kept = "".join(f"; {path.name} is kept" for path in RESULTS.glob("checkpoint-*"))
        fail(f"training diverged at step {step}, on {' and '.join(names)}; lower --learning-rate, or mend them{kept}")

    def train(self, resume_from_checkpoint=None):
        """Train as TRL does, anew or from a checkpoint, with Ctrl-C and the end of another process turned into a line that says how to go on."""
        if resume_from_checkpoint is None:
            start_anew(self.run)
        elif PROCESSES == 1 and self.trained_to_the_end(resume_from_checkpoint):
            return None
        if PROCESSES == 1:  # several would have to agree on the step
            signal.signal(signal.SIGINT, self.stop_after_this_step)
        signal.signal(signal.SIGTERM, self.ended)
        try:
            result = super().train(resume_from_checkpoint=str(resume_from_checkpoint) if resume_from_checkpoint else None)
        except RuntimeError as error:
            if PROCESSES == 1:
                raise
            explain(error, self.args.per_device_train_batch_size, is_peft_model(self.model))
            print(error, file=sys.stderr)  # as a rule: the connection to another process broke
            self.ended()
        finally:
            if PROCESSES == 1:
                signal.signal(signal.SIGINT, interrupted)
            if self.table.training_bar:
                self.table.training_bar.close()  # or its last line stands below the message
        if self.interrupted:
            print(f"\nInterrupted. Step {self.state.global_step} is saved; go on from there with --resume.", file=sys.stderr)
            sys.exit(130)
        return result

    def trained_to_the_end(self, checkpoint: Path) -> bool:
        """Return whether a checkpoint is of the last step; if it is, its weights and log are taken. With --max-steps Trainer would train another."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        return True

    def stop_after_this_step(self, *_) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, interrupted)  # a second Ctrl-C does not wait for the end of the step

    def ended(self, *_) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one line is enough, whoever else is told to end this process
        again = "go on from the last checkpoint with --resume" if whole_checkpoints() else "mend what stands above, and run this again"
        sys.exit(f"\nerror: a process of this run was ended at step {self.state.global_step}; {again}")


def without_lora(model) -> list[str]:
    """Return the layers that can have no LoRA: where the kernels of a Mamba layer read the weights themselves, without it."""
    return [name for name, _ in model.named_modules() if name.endswith(("mamba.out_proj", "mixer.out_proj"))]


def fit_to_processes(args) -> None:
    """Change the few settings of a DPOConfig that several processes need otherwise.

    The evaluation takes 4 pairs at a time in all, a divisor of their number, since TRL's metrics are means over batches. Several processes cannot
    compute the reference before the first step (TRL 1.16): each looks in a temporary folder of its own for what the first has written. Adafactor
    cannot update weights that FSDP has split.
    """
    args.per_device_eval_batch_size = max(1, 4 // PROCESSES)
    args.precompute_ref_log_probs = PROCESSES == 1
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        args.optim = OptimizerNames.ADAMW_TORCH


def answer_log_probs(model, input_ids, attention_mask, labels, **_):
    """Return log p of each token of the answers, as TRL's loss reads it: (2 * pairs, length - 1), 0 where labels is -100.

    TRL passes rows of prompt + chosen stacked upon rows of prompt + rejected, padded on the right: (2 * pairs, length). The model gets all in
    one row without padding, in which a token sees what stands before it in its own conversation. So a prompt is computed once for both answers
    of its pair (prefix sharing: Wang and Hegde 2024, https://arxiv.org/abs/2410.20305), and what all conversations begin with, as a rule the
    system's turn, once for the batch.
    """
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


# ---- While it trains -----------------------------------------------------------------------------------------------------------------
class Table(ProgressCallback):
    """Prints the table, the progress bar and the estimate of the time."""

    columns = ["loss/dpo", "rewards/margins", "rewards/chosen", "rewards/rejected", "rewards/accuracies"]

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.first_step = state.global_step
        self.training_bar.write("Step  Training Loss  Rewards/Margins  Rewards/Chosen  Rewards/Rejected  Rewards/Accuracies")

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == self.first_step + 1:
            self.start = time.time()  # the first step is slower
        if state.global_step == self.first_step + 21:  # with a checkpoint among them
            steps = state.max_steps - self.first_step
            minutes = (time.time() - self.start) / 20 * steps / 60
            self.training_bar.write(f"(about {minutes:.0f} min for these {steps} steps)")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss/dpo" in logs and state.global_step % 5 == 0:
            row = [logs[name] for name in self.columns]
            self.training_bar.write("{:4d}  {:13.4f}  {:15.3f}  {:14.3f}  {:16.3f}  {:18.2f}".format(state.global_step, *row))


class Guard(TrainerCallback):
    """Lets no model be saved that holds NaN, and saves one when the reader has pressed Ctrl-C."""

    def __init__(self, trainer: DPOWithSFTTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.trainer.interrupted:
            control.should_save = control.should_training_stop = True
        if control.should_save and not all(weight.isfinite().all() for weight in model.parameters() if weight.requires_grad):
            self.trainer.diverged(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not all(map(math.isfinite, logs.values())):
            self.trainer.diverged(state.global_step)


def show_data(trainer: DPOWithSFTTrainer, file: str, controls: int, alone: dict[str, float]) -> None:
    """Print one pair as the model sees it, how much there is to train on, from which file (the last rows are controls), and what answers_alone()
    said of each set of held-out pairs."""
    rows, args = trainer.train_dataset, trainer.args
    print("\nThe first pair as the model sees it (the loss covers what stands after chosen and rejected):")
    for name in ("prompt", "chosen", "rejected"):
        print(f"  {name + ':':10}{trainer.processing_class.decode(rows[0][name + '_ids'])!r}")
    tokens = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    steps = int(args.num_train_epochs) * math.ceil(len(rows) / args.per_device_train_batch_size / PROCESSES)
    print(f"\n{len(rows) - controls} pairs of {file}, {controls} of control_data.json; {tokens:,} tokens an epoch")
    shares = " and ".join(f"{share:.0%} of the {len(trainer.eval_dataset[kind])} on {kind} claims" for kind, share in alone.items())
    print(f"Held-out pairs that naive Bayes on the words of the answers gets right without the prompt: {shares}")
    precision = ", in fp32: it has no bf16" if args.device.type == "cuda" and args.mixed_precision == "no" else ""  # as a T4
    print(f"{args.max_steps if args.max_steps > 0 else steps} steps on {args.device.type}{precision}")


# ---- When it has trained -------------------------------------------------------------------------------------------------------------
def save_final_model(trainer: DPOWithSFTTrainer, source: dict) -> None:
    """Write final_model/, and adapter/ if one was trained, each whole or absent. In other processes than the first, end the script.

    source is the base model's source.json; beside it the sha256 of the tuned weights is written down.
    """
    temporary, adapter = RESULTS / ".final_model.tmp", RESULTS / ".adapter.tmp"
    if FIRST_PROCESS:
        for folder in (temporary, adapter):
            shutil.rmtree(folder, ignore_errors=True)
    if with_adapter := is_peft_model(trainer.model):
        # What the adapter belongs to is told by the model's id, not by the path of its folder on this machine.
        base, settings = trainer.model.get_base_model(), trainer.model.active_peft_config
        base.name_or_path = base.config.name_or_path = settings.base_model_name_or_path = source["model"]
        trainer.save_model(adapter)
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model(temporary)  # a call for all processes: with FSDP each holds a part of the weights
    trainer.accelerator.end_training()  # closes the connections; a process that ends with them open may abort, and take the first one down
    if not FIRST_PROCESS:
        sys.exit()
    for folder in (temporary, adapter):
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody needs
    write(temporary / "source.json", source | {"tuned_sha256": weights_sha256(temporary)})
    replace_folder(temporary, FINAL_MODEL)
    if with_adapter:
        replace_folder(adapter, ADAPTER)
    else:
        shutil.rmtree(ADAPTER, ignore_errors=True)


def peak_memory(device: str) -> float:
    """Return the peak memory of this process in GB: of the GPU on CUDA, of the machine elsewhere."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows, where psutil knows the peak; elsewhere it knows only what is used now
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
