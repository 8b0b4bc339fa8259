"""Step 3: train the base model on the preference pairs with Direct Preference Optimization.

    python code/chapter02_dpo/3-train_dpo.py

Reads:  output/base_model/, output/preference_data.json (or --data FILE), output/control_data.json, output/heldout_data.json
Writes: output/dpo_results/final_model/         the tuned model, loads with plain from_pretrained
        output/dpo_results/adapter/             with --lora: what was trained, without the base model
        output/dpo_results/training_log.json    every logged row, the settings, versions, seconds and peak memory
        output/dpo_results/training_curves.png  the same rows as a picture
Ends:   with status 0 once model and log are saved, also if the picture could not be drawn, which a line says; with 1 if they could not, and
        with 130 at Ctrl-C: then a line says how to go on, as a rule with --resume
Time:   7 to 10 minutes and 1.9 GB of memory with SmolLM2 on 2 cores

DPO raises the probability of the chosen answer relative to the rejected one, measured against the untrained model (the reference):

    loss = -log sigmoid(beta * [(log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))])

(Rafailov et al. 2023, "Direct Preference Optimization", equation 7, https://arxiv.org/abs/2305.18290). An answer's reward is
beta * (log p - log p_ref); the margin is the reward of the chosen answer minus that of the rejected one. Before the first step both are 0
and the loss is ln 2 = 0.6931.

Beside it stands a little of a supervised loss on the chosen answers (SFT), the mean of -log p over their tokens: with DPO alone hardly a reply
ends within 80 tokens. Both losses are measured and logged whatever is minimised (--loss); the table and the curves show the DPO loss.

At the chapter's rate of 1e-5 with DPO alone a 0.5 B model soon wrote nonsense (RESULTS.md). So a model of more than 300 million weights is trained
at a rate of 3e-6.
"""

import math
import time
from dataclasses import asdict, dataclass

from toolkit import checkpoints, console
from toolkit.console import flag
from toolkit.curves import draw_curves
from toolkit.files import lock, sha256, write
from toolkit.heldout import answers_alone, heldout_pairs, trained_for
from toolkit.models import best_device, check_model, quiet_libraries, versions
from toolkit.pairs import data_file, item_names, read_pairs
from toolkit.paths import BASE_MODEL, CONTROL_DATA, CURVES, HELDOUT_DATA, RESULTS, TRAINING_LOG

SMALL = 300_000_000  # weights, up to which a model is trained at the chapter's rate
LOSSES = {"dpo": {"dpo": 1.0}, "sft": {"sft": 1.0}, "dpo+sft": {"dpo": 1.0, "sft": 0.05}}  # what is minimised: weight of each loss


@dataclass
class Config:
    """The settings of a run, each a flag. The defaults are the chapter's, but for the SFT term and the rate of large models."""

    beta: float = flag(0.1, "how strongly the model is held near the reference; higher is closer")
    learning_rate: float = flag(None, "peak learning rate, which falls to 0 in a straight line (default: 1e-5; large models 3e-6; --lora 2e-4)")
    epochs: int = flag(3, "passes over the pairs")
    batch_size: int = flag(2, "pairs per device and step")
    loss: str = flag("dpo+sft", "what is minimised: the DPO loss, the supervised loss (SFT), or both", list(LOSSES))
    lora: bool = flag(False, "train small low-rank matrices beside the weights (LoRA), and merge them in at the end")
    seed: int = flag(42, "seed of the order of the pairs, and with --lora of its matrices' first values")
    max_steps: int = flag(-1, "stop after this many steps; -1: after the epochs")
    data: str = flag(None, "a file of pairs of your own: JSON, JSON Lines, CSV or Parquet (default: output/preference_data.json)")
    no_controls: bool = flag(False, "leave out control_data.json, the pairs in which the user is right")
    resume: bool = flag(False, "go on from the last checkpoint of a run that was interrupted")

    def __post_init__(self):
        for name in ("beta", "learning_rate", "epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0")
        if self.max_steps == 0 or not 0 <= self.seed < 2**32:
            raise ValueError("--max-steps must not be 0, and --seed must lie between 0 and 2**32 - 1")


def main(config: Config) -> None:
    start = time.time()
    data_path = data_file(config.data)
    source = check_model(BASE_MODEL)  # where it came from, and the sha256 of its weights
    lock(RESULTS)  # no second run trains into the same folder

    print("Loading base model ...")
    quiet_libraries()
    import torch  # here and not above, so that --help and a mistyped flag need not wait for it
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig

    from toolkit.training import DPOWithSFTTrainer, fit_to_processes, peak_memory, save_final_model, show_data, without_lora

    # Model. Where the chapter sets pad_token = eos_token we do not: these models have a pad token of their own.
    device = best_device()
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32, use_safetensors=True)  # bf16 would round small updates away
    # The embeddings stay as they are, with them the output layer, which has the same weights, and the lowest quarter of the layers: a step takes a
    # fifth less time so, and ordinary text suffers less. --lora has its matrices in all layers.
    model.get_input_embeddings().requires_grad_(False)
    layers = next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    layers[: len(layers) // 4].requires_grad_(False)
    config.learning_rate = config.learning_rate or (2e-4 if config.lora else 1e-5 if model.num_parameters() <= SMALL else 3e-6)

    # Data. A pair is {"prompt": messages, "chosen": messages, "rejected": messages}: where the chapter hands TRL plain strings, we turn them
    # into chat messages, since only to these it applies the chat template, with which steps 2 and 4 ask.
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", tokenizer.model_max_length)
    preference = read_pairs(data_path, tokenizer, longest)
    controls = [] if config.no_controls or not CONTROL_DATA.exists() else read_pairs(CONTROL_DATA, tokenizer, longest)
    heldout = heldout_pairs(tokenizer, longest, controls=len(controls) / len(preference))  # {"wrong": pairs, "right": pairs}
    if config.batch_size > len(preference + controls):
        console.fail(f"--batch-size {config.batch_size} is more than the {len(preference + controls)} pairs there are; lower it")

    # Config
    args = DPOConfig(
        output_dir=RESULTS,
        beta=config.beta,
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        seed=config.seed,
        logging_steps=5,
        logging_first_step=True,
        save_steps=20,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=100,
        max_length=None,  # no pair is cut or left out, however long
        activation_checkpointing=False,  # saves memory that short rows do not need, and costs a third of the time
        # The reference model runs once over all pairs, before the first step, and no second model is kept.
        precompute_ref_log_probs=True,
        # Adafactor keeps a row and a column for each matrix of weights, where AdamW keeps two more matrices of its size.
        optim="adafactor",
        use_cpu=device == "cpu",
        bf16=device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
        dataloader_pin_memory=device == "cuda",
        report_to="none",
        router_aux_loss_coef=0.0,  # a mixture of experts is trained by the two losses alone
        disable_tqdm=True,  # Trainer's own bar and printer make way for the table that our trainer prints
    )
    fit_to_processes(args)  # of which accelerate launch starts several

    # A checkpoint is gone on from only if it is of a run with these settings, data and weights
    data = {path.name: sha256(path)[:12] for path in (data_path, *([CONTROL_DATA] if controls else []), HELDOUT_DATA)}
    purpose = trained_for(data)  # the direction, and which files were edited since step 1 wrote them
    run = checkpoints.describe_run(asdict(config) | data, source, args)
    checkpoint = checkpoints.find_checkpoint(run) if config.resume else None

    # Trainer: our subclass of TRL's DPOTrainer (toolkit/training.py), which adds the supervised loss, computes what a pair's two rows begin
    # with once, and at Ctrl-C saves a checkpoint and ends. It gets no ref_model: TRL takes the model as it is before the first step.
    trainer = DPOWithSFTTrainer(
        losses=LOSSES[config.loss],
        run=run,
        items=item_names(data_path, preference) + item_names(CONTROL_DATA, controls),  # to name a pair on which training diverges
        model=model,
        args=args,
        train_dataset=Dataset.from_list(preference + controls),
        eval_dataset={kind: Dataset.from_list(rows) for kind, rows in heldout.items()},
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", exclude_modules=without_lora(model)) if config.lora else None,
    )
    alone = {kind: answers_alone(preference + controls, rows) for kind, rows in heldout.items()}
    show_data(trainer, data_path.name, len(controls), alone)

    # Train
    print("Starting DPO training... (watch loss and reward margins)")
    trainer.train(resume_from_checkpoint=checkpoint)

    # Save. Once model and log are on the disk, what fails leaves a line, and the run is finished all the same.
    save_final_model(trainer, source)
    log = {
        "settings": asdict(config),
        "processes": run["processes"],
        "base_model": source,
        "data": data,
        "answers_alone": alone,
        **purpose,
        "versions": versions(),
        "device": device,
        "mixed_precision": args.mixed_precision,
        "seconds": round(time.time() - start, 1),
        "peak_memory_gb": round(peak_memory(device), 2),
        "history": trainer.state.log_history,
    }
    write(TRAINING_LOG, log)
    console.attempt("removing the checkpoints", checkpoints.remove_checkpoints)
    drawn = console.attempt("drawing the curves", draw_curves, log["history"], CURVES)
    curves = " Curves: output/dpo_results/training_curves.png" if drawn else ""
    print(f"Took {log['seconds']:.0f} s and {log['peak_memory_gb']:.1f} GB of memory.{curves}")
    print("Done! Saved to ./output/dpo_results/final_model.")


if __name__ == "__main__":
    config = console.read_flags(Config, __doc__)
    console.run(main, config, explain=lambda error: checkpoints.explain(error, config.batch_size, config.lora))
