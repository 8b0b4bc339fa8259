"""Step 3 in two processes on the CPU, by accelerate launch: the same losses as in one, one that prints and writes, and a worker that is killed."""

import subprocess
import sys
import time

import psutil
import pytest

from conftest import SCRIPTS, clean_environment
from test_train import copy, log, results, weights

# accelerate splits a model (FSDP) over GPUs only. This makes it take two processes on the CPU for two with a GPU each; the rest is as it is.
AS_IF_GPUS = """
import os, runpy, sys
from accelerate.state import DistributedType, PartialState
init = PartialState.__init__

def init_as_if(self, *args, **kwargs):
    init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

PartialState.__init__ = init_as_if
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FSDP = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_state_dict_type", "FULL_STATE_DICT"]


def start(chapter, *flags, how=("--multi_gpu",), **options) -> subprocess.Popen:
    script = [str(chapter.root / "code/chapter02_dpo" / SCRIPTS["3"].name)]
    if "--use_fsdp" in how:
        (chapter.root / "as_if_gpus.py").write_text(AS_IF_GPUS)
        script.insert(0, str(chapter.root / "as_if_gpus.py"))
    command = [sys.executable, "-m", "accelerate.commands.launch", *how, "--num_processes", "2", *script, *flags]
    return subprocess.Popen(command, cwd=chapter.root, env=clean_environment(chapter.root) | {"OMP_NUM_THREADS": "1"}, text=True, **options)


@pytest.mark.parametrize("more", [["--loss", "dpo"], ["--loss", "dpo+sft"], ["--lora"]], ids=" ".join)
def test_two_processes_give_the_losses_of_one(tiny, tmp_path, more):
    flags = ("--max-steps", "30", "--learning-rate", "1e-3", *more)
    other = copy(tiny, tmp_path / "other")
    printed = tiny.ok(3, *flags, "--batch-size", "2")
    process = start(other, *flags, "--batch-size", "1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate()
    assert process.returncode == 0, err
    one, two = (log(chapter)["history"] for chapter in (tiny, other))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(one, two):
        for name in ("loss", "loss/dpo", "loss/sft", "rewards/margins", "rewards/chosen", "eval_wrong_loss", "eval_right_loss/dpo"):
            assert a.get(name) == pytest.approx(b.get(name), abs=1e-4), (a["step"], name)
    assert len(one) == 10 and max(row.get("rewards/margins", 0) for row in one) > 0.01
    # One process prints, and one writes.
    kept = [[line for line in text.splitlines() if not line.startswith(("Took", "(about"))] for text in (printed, out)]
    assert [len(line) for line in kept[0]] == [len(line) for line in kept[1]]
    assert sorted(path.name for path in results(other).iterdir()) == sorted(path.name for path in results(tiny).iterdir())
    one, two = (weights(results(chapter) / "final_model") for chapter in (tiny, other))
    assert one.keys() == two.keys() and all(one[name].allclose(two[name], atol=1e-3) for name in one)


def test_fsdp_gives_the_losses_of_one_process(tiny, tmp_path):
    flags = ("--max-steps", "30", "--learning-rate", "1e-3")
    other = copy(tiny, tmp_path / "other")
    script = tiny.root / "code/chapter02_dpo" / SCRIPTS["3"].name
    assert script.read_text().count('optim="adafactor"') == 1
    script.write_text(script.read_text().replace('optim="adafactor"', 'optim="adamw_torch"'))  # as with FSDP
    tiny.ok(3, *flags)
    process = start(other, *flags, "--batch-size", "1", how=FSDP, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate()
    assert process.returncode == 0, err
    one, two = (log(chapter)["history"] for chapter in (tiny, other))
    for a, b in zip(one, two, strict=True):
        for name in ("loss/dpo", "loss/sft", "rewards/margins", "eval_wrong_loss/dpo", "eval_right_loss/dpo"):
            assert a.get(name) == pytest.approx(b.get(name), abs=1e-4), (a["step"], name)
    one, two = (weights(results(chapter) / "final_model") for chapter in (tiny, other))
    before = weights(tiny.output / "base_model")
    assert two.pop("lm_head.weight").equal(two["model.embed_tokens.weight"])  # FSDP saves what is tied twice
    assert one.keys() == two.keys() and all(one[name].allclose(two[name], atol=1e-4) for name in one)
    assert any(not two[name].allclose(before[name], atol=1e-3) for name in two)


def test_killed_worker_ends_the_run_and_leaves_a_checkpoint(tiny):
    flags = ("--max-steps", "140", "--batch-size", "1")
    process = start(tiny, *flags, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(results(tiny).glob("checkpoint-40/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.05)
    workers = [child for child in psutil.Process(process.pid).children(recursive=True) if child.environ().get("RANK") == "1"]
    assert len(workers) == 1
    workers[0].kill()
    _, err = process.communicate()
    assert process.returncode != 0
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "a process of this run was ended at step" in lines[0] and "--resume" in lines[0], err
    assert not (results(tiny) / "final_model").exists()
    process = start(tiny, *flags, "--resume", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert log(tiny)["history"][-1]["step"] == 140 and log(tiny)["settings"]["resume"]
