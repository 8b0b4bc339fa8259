"""A training that was broken off: what is left of it, how to go on from there, and in one line what broke it off."""

import json
import re
import shutil
from pathlib import Path

from toolkit.console import FIRST_PROCESS, fail, os_error
from toolkit.files import read_json, write
from toolkit.paths import RESULTS, RUN


def describe_run(settings: dict, source: dict, args) -> dict:
    """Return what must be the same when a training goes on from a checkpoint: settings, data, base model, precision ("no" is fp32)."""
    run = settings | {"processes": args.world_size, "base_model": source["sha256"], "mixed_precision": args.mixed_precision}
    del run["resume"]
    return run


def start_anew(run: dict) -> None:
    """Remove the checkpoints of an earlier run, and write down what the next ones are of."""
    if FIRST_PROCESS:
        remove_checkpoints()
        write(RUN, run)


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
    before = read_json(RUN)
    changed = [f"{name} (was {before.get(name)}, is {value})" for name, value in run.items() if before.get(name) != value]
    if changed:
        fail(f"the checkpoint is of a run with other settings or data: {', '.join(changed)}; use those again, or run without --resume")
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def remove_checkpoints() -> None:
    """Remove the checkpoints of a run that is finished or given up, and the model card that TRL writes beside them."""
    for path in [RUN, *RESULTS.glob("checkpoint-*"), RESULTS / "README.md"]:  # without the first no checkpoint is gone on from
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def explain(error: Exception, batch_size: int, lora: bool) -> None:
    """End the script with one line if an error of a training is one of those that a reader can mend."""
    text = str(error)
    if isinstance(error, MemoryError) or re.search("out of memory|not enough memory|allocate memory", text):
        lower = f"lower --batch-size from {batch_size} to {batch_size // 2}"
        fail(f"out of memory; {lower if batch_size > 1 else 'shorten the longest pairs' if lora else 'train with --lora'}")
    again = f"mend that and run this again{' with --resume' if RUN.exists() and whole_checkpoints() else ''}"
    if isinstance(error, OSError):  # a full disk, a folder that may not be written to
        fail(f"{os_error(error)}; {again}")
    if re.search("No space left|failed writing file|unexpected pos", text):
        fail(f"output/dpo_results/: No space left on device; {again}")
    if isinstance(error, ValueError) and "precision" in text:
        fail(f"{text.splitlines()[0]}; set ACCELERATE_MIXED_PRECISION to bf16, or leave it out")
    if re.search("weights_only|Error while deserializing|PytorchStreamReader|Ran out of input|valid checkpoint", text):
        fail("the checkpoint in output/dpo_results/ is damaged; run without --resume")
