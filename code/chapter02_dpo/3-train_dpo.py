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

import math
import os
import time
from dataclasses import asdict, dataclass

from toolkit import checkpoints, console
from toolkit.console import flag
from toolkit.curves import draw_curves
from toolkit.files import lock, sha256, write
from toolkit.models import best_device, check_model, quiet_libraries, versions
from toolkit.pairs import item_names, read_pairs
from toolkit.paths import BASE_MODEL, CONTROL_DATA, CURVES, HELDOUT_DATA, PREFERENCE_DATA, RESULTS, TRAINING_LOG

LOSSES = {"dpo": {"dpo": 1.0}, "sft": {"sft": 1.0}, "dpo+sft": {"dpo": 1.0, "sft": 0.2}}  # what is minimised: weight of each loss
EVAL_PAIRS = 20  # held-out pairs measured every 30 steps and at the end, half of each kind


@dataclass
class Config:
    """The settings of a run. The defaults are the chapter's; each field is a flag."""

    beta: float = flag(0.1, "how strongly the policy is held near the reference model; higher is closer")
    learning_rate: float = flag(None, "peak learning rate, which falls to 0 in a straight line (default: 1e-5, with --lora 2e-4)")
    epochs: int = flag(3, "passes over the pairs")
    batch_size: int = flag(2, "pairs per device and step")
    loss: str = flag("dpo+sft", "what is minimised: the DPO loss, the supervised loss (SFT) on the chosen answers, or both", list(LOSSES))
    lora: bool = flag(False, "train small low-rank matrices beside the weights (LoRA), and merge them in at the end")
    seed: int = flag(42, "seed of the order of the pairs, and with --lora of its matrices' first values")
    max_steps: int = flag(-1, "stop after this many steps; -1: after the epochs")
    no_controls: bool = flag(False, "leave out control_data.json, the pairs in which the user is right")
    resume: bool = flag(False, "go on from the last checkpoint of a run that was interrupted")

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = 2e-4 if self.lora else 1e-5
        for name in ("beta", "learning_rate", "epochs", "batch_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0")
        if self.max_steps == 0 or not 0 <= self.seed < 2**32:
            raise ValueError("--max-steps must not be 0, and --seed must lie between 0 and 2**32 - 1")


def main(config: Config) -> None:
    start = time.time()
    source = check_model(BASE_MODEL)
    lock(RESULTS)  # no second run trains into the same folder

    # Model. The weights stay in fp32, in which small updates are not rounded away; bf16 is for the arithmetic, where the hardware has it.
    print("Loading base model ...")
    quiet_libraries()
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig

    from toolkit.training import PROCESSES, DPOWithSFTTrainer, peak_memory, save_final_model, show_data

    device = best_device()
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)  # it has a pad token of its own: no pad_token = eos_token as in the chapter
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32, use_safetensors=True)
    model.get_input_embeddings().requires_grad_(False)  # a fifth of the small model's weights; a step is a tenth shorter without them

    # Data, as chat messages: TRL applies the chat template to those, and not to the chapter's plain strings
    with_controls = CONTROL_DATA.exists() and not config.no_controls
    files = [PREFERENCE_DATA, *[CONTROL_DATA] * with_controls, HELDOUT_DATA]
    *train, heldout = (read_pairs(path, tokenizer, model.config.max_position_embeddings) for path in files)
    train_rows, eval_rows = sum(train, []), heldout[:: max(1, len(heldout) // EVAL_PAIRS)]
    if config.batch_size > len(train_rows):
        console.fail(f"--batch-size {config.batch_size} is more than the {len(train_rows)} pairs there are; lower it")

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
        # Adafactor keeps a row and a column for each matrix, AdamW two more matrices; Adafactor cannot move weights that FSDP has split.
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
        disable_tqdm=True,  # Trainer's own bar and printer make way for our table
    )
    data = {path.name: sha256(path)[:12] for path in files}
    run = checkpoints.describe_run(asdict(config) | data, PROCESSES, source, args.mixed_precision)
    checkpoint = checkpoints.find_checkpoint(run) if config.resume else None

    # Trainer: TRL's DPOTrainer, which adds the supervised loss, prints the table, and saves at Ctrl-C
    trainer = DPOWithSFTTrainer(
        losses=LOSSES[config.loss],
        items=item_names(files, train),
        model=model,
        args=args,
        train_dataset=Dataset.from_list(train_rows),
        eval_dataset=Dataset.from_list(eval_rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if config.lora else None,
    )
    show_data(trainer, controls=len(train_rows) - len(train[0]))

    # Train
    print("Starting DPO training... (watch loss and reward margins)")
    if checkpoint is None:
        checkpoints.start_anew(run)
    trainer.train(resume_from_checkpoint=checkpoint)

    # Save
    save_final_model(trainer, source)
    log = {
        "settings": asdict(config),
        "processes": PROCESSES,
        "base_model": source,
        "data": data,
        "versions": versions(),
        "device": device,
        "mixed_precision": args.mixed_precision,
        "seconds": round(time.time() - start, 1),
        "peak_memory_gb": round(peak_memory(device), 2),
        "history": trainer.state.log_history,
    }
    write(TRAINING_LOG, log)
    draw_curves(log["history"], CURVES)
    checkpoints.remove_checkpoints()
    print(f"Took {log['seconds']:.0f} s and {log['peak_memory_gb']:.1f} GB of memory. Curves: output/dpo_results/training_curves.png")
    print("Done! Saved to ./output/dpo_results/final_model.")


if __name__ == "__main__":
    config = console.read_flags(Config, __doc__)
    console.run(main, config, explain=lambda error: checkpoints.explain(error, config.batch_size, config.lora))
