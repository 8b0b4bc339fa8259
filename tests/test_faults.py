"""What a reader's machine does to a run: kill, Ctrl-C, a full or read-only disk, damaged files, two runs at once.

The number of kills is that of the environment variable KILLS; 20 take about 9 minutes.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from conftest import ROOT, SCRIPTS, UNSHARE, Chapter, clean_environment, needs_namespaces
from test_train import copy, log, results, weights
from toolkit.checkpoints import explain

KILLS = int(os.environ.get("KILLS", "3"))
FLAGS = ("--max-steps", "60", "--learning-rate", "1e-3")


def use_few_claims(chapter, number: int = 8) -> None:
    """Cut the held-out claims to a few of each kind, which makes steps 2 and 4 fast."""
    path = chapter.output / "heldout_data.json"
    claims = json.loads(path.read_text())
    wrong, right = ([claim for claim in claims if claim["user_is_right"] is kind] for kind in (False, True))
    few = slice(0, None, len(wrong) // number)
    path.write_text(json.dumps(wrong[few] + right[few]))


@pytest.fixture(scope="module")
def whole_run(tiny_model, tmp_path_factory) -> Chapter:
    """A chapter that was run to its end once, with the tiny model, few steps and few claims."""
    chapter = Chapter(tmp_path_factory.mktemp("whole") / "a chapter")
    for number, flags in {0: ["--model", str(tiny_model)], 1: [], 2: [], 3: ["--max-steps", "1"], 4: []}.items():
        chapter.ok(number, *flags)
        if number == 1:
            use_few_claims(chapter)
    return chapter


@pytest.fixture
def finished(whole_run, tmp_path) -> Chapter:
    """A copy of it, for one test."""
    return copy(whole_run, tmp_path / "a finished chapter")


def snapshot(folder) -> dict:
    """Return the bytes of every file that a reader or a script may look at: what starts with a dot is unfinished, or a lock."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if not any(part.startswith(".") for part in name.parts)}


def assert_whole(chapter) -> None:
    """Every file in output/ is whole, and every model folder complete; checkpoints only count when they are."""
    from PIL import Image

    for path in chapter.output.rglob("*"):
        parts = path.relative_to(chapter.output).parts
        if any(part.startswith((".", "checkpoint-")) for part in parts):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        if path.suffix == ".safetensors":
            assert len(weights(path.parent)) == 26
        if path.suffix == ".png":
            Image.open(path).load()
    for folder in (chapter.output / "base_model", results(chapter) / "final_model"):
        assert not folder.exists() or {"config.json", "model.safetensors", "tokenizer.json", "source.json"} <= {
            path.name for path in folder.iterdir()
        }


@pytest.mark.parametrize("number", ["0", "1", "2", "3", "4"])
def test_killed_at_random_moments(finished, tiny_model, number):
    """Nothing finished is lost, nothing is half-written, and the same command then succeeds."""
    flags = {"0": ("--model", str(tiny_model), "--force"), "3": ("--max-steps", "45")}.get(number, ())
    began = time.monotonic()
    finished.ok(number, *flags)
    seconds = time.monotonic() - began
    names = set(snapshot(finished.output))
    moments = random.Random(int(number))
    for _ in range(KILLS):
        process = finished.start(number, *flags, pipe=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.3, 1) * seconds)
        process.kill()
        process.wait()
        assert_whole(finished)
        left = {name for name in snapshot(finished.output) if "checkpoint-" not in name and not name.endswith(("run.json", "results/README.md"))}
        assert left >= names
    finished.ok(number, *flags)
    assert set(snapshot(finished.output)) == names


def test_run_sh_killed_at_random_moments(finished):
    shutil.copyfile(ROOT / "requirements.txt", finished.root / "requirements.txt")
    env = clean_environment(finished.root)
    env |= {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{env['PATH']}"}
    moments = random.Random(5)
    for _ in range(KILLS):
        process = subprocess.Popen(
            ["bash", str(finished.root / "code/run.sh")], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(moments.uniform(0.5, 15))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert_whole(finished)
        assert (finished.output / "base_model/model.safetensors").exists() and (finished.output / "preference_data.json").exists()


def checkpoint_begun(chapter, step: int) -> bool:
    """Whether the checkpoint of a step is being written."""
    folder = results(chapter) / f"checkpoint-{step}"
    return folder.exists() and not (folder / "trainer_state.json").exists()


def checkpoint_whole(chapter, step: int) -> bool:
    state = results(chapter) / f"checkpoint-{step}/trainer_state.json"
    return state.exists() and state.read_text().endswith("}\n")


def stop_when(process, reached, number: int) -> int:
    """Send a signal to a process as soon as reached() is true, and return its exit status."""
    while not reached():
        assert process.poll() is None, "it ended before that"
        time.sleep(0.001)
    process.send_signal(number)
    return process.wait()


def test_resumed_twice_and_after_a_kill_in_a_checkpoint_gives_the_same_weights(tiny, tmp_path):
    """Bit for bit those of the run that was never interrupted."""
    other = copy(tiny, tmp_path / "other")
    flags = ("--max-steps", "160", "--learning-rate", "1e-3")
    resume = ()
    for step in (40, 60, 80, 100, 120):  # until a kill comes before the checkpoint is whole
        stop_when(tiny.start(3, *flags, *resume, pipe=subprocess.DEVNULL), lambda step=step: checkpoint_begun(tiny, step), signal.SIGKILL)
        resume = ("--resume",)
        if not checkpoint_whole(tiny, step):
            break
    assert not checkpoint_whole(tiny, step) and checkpoint_whole(tiny, step - 20)
    stop_when(tiny.start(3, *flags, "--resume", pipe=subprocess.DEVNULL), lambda: checkpoint_whole(tiny, step), signal.SIGKILL)
    assert not (results(tiny) / "final_model").exists()
    (results(tiny) / "checkpoint-159").mkdir()  # the least that a kill can leave of a checkpoint
    tiny.ok(3, *flags, "--resume")
    assert not list(results(tiny).glob("checkpoint-*"))
    other.ok(3, *flags)
    one, two = weights(results(tiny) / "final_model"), weights(results(other) / "final_model")
    assert all((one[name] == two[name]).all() for name in one)
    assert [row["step"] for row in log(tiny)["history"]] == [row["step"] for row in log(other)["history"]]


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(tiny, tmp_path):
    other = copy(tiny, tmp_path / "other")
    process = tiny.start(3, *FLAGS, PYTHONUNBUFFERED="1")
    line = ""
    while not line.startswith("   5 "):
        line = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    step = max(int(path.name.removeprefix("checkpoint-")) for path in results(tiny).glob("checkpoint-*"))
    assert 5 <= step < 60 and f"Interrupted. Step {step} is saved; go on from there with --resume." in err
    tiny.ok(3, *FLAGS, "--resume")
    other.ok(3, *FLAGS)
    one, two = weights(results(tiny) / "final_model"), weights(results(other) / "final_model")
    assert all((one[name] == two[name]).all() for name in one)


def test_ctrl_c_after_training(tiny):
    process = tiny.start(3, "--max-steps", "5")
    stop_when(process, (results(tiny) / "training_log.json").exists, signal.SIGINT)  # the curves take a second more
    out, err = process.communicate()
    assert process.returncode == 130 and "Done!" not in out
    assert err.strip().endswith("Interrupted. What was finished before is still there.")
    assert weights(results(tiny) / "final_model") and not (results(tiny) / "training_curves.png").exists()
    assert "Done!" in tiny.ok(3, "--max-steps", "5")


@pytest.mark.parametrize("number", ["2", "4"])
def test_ctrl_c_elsewhere(finished, number):
    kept = snapshot(finished.output)
    process = finished.start(number, PYTHONUNBUFFERED="1")
    assert process.stdout.readline().startswith("Loading")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and err.strip().endswith("Interrupted. What was finished before is still there.")
    assert snapshot(finished.output) == kept


def test_resume_with_other_settings_or_data_is_refused(tiny):
    stop_when(tiny.start(3, *FLAGS, pipe=subprocess.DEVNULL), lambda: checkpoint_whole(tiny, 20), signal.SIGKILL)
    line = tiny.error(3, *FLAGS, "--resume", "--beta", "0.3")
    assert line.startswith("error: the checkpoint is of a run with other settings or data: beta (was 0.1, is 0.3); ")
    assert "data: mixed_precision (was no, is bf16); " in tiny.error(3, *FLAGS, "--resume", ACCELERATE_MIXED_PRECISION="bf16")
    pairs = json.loads((tiny.output / "preference_data.json").read_text())
    (tiny.output / "preference_data.json").write_text(json.dumps(pairs[1:]))
    assert "data: preference_data.json (was " in tiny.error(3, *FLAGS, "--resume")
    assert checkpoint_whole(tiny, 20)


def test_two_runs_at_once(tiny):
    process = tiny.start(3, "--max-steps", "1000", pipe=subprocess.DEVNULL)
    while not (results(tiny) / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    line = tiny.error(3, "--max-steps", "1")
    assert line == f"error: another run trains into output/dpo_results/, process {process.pid}; wait for it, or end it"
    assert process.poll() is None
    process.kill()
    process.wait()
    tiny.ok(3, "--max-steps", "1")


def run_in_a_namespace(chapter, number, *flags, setup: str) -> tuple[str, dict]:
    """Run a script, which must fail, with output/ mounted as setup says. Return the last line on stderr, and output/ as the script left it."""
    after = chapter.root / "after"
    shell = f'cd "{chapter.output}" && {setup} && cd "{chapter.output}"; "$@"; code=$?; cp -r . "{after}"; exit $code'
    script = str(chapter.root / "code/chapter02_dpo" / SCRIPTS[str(number)].name)
    command = [*UNSHARE, "sh", "-c", shell, "sh", sys.executable, script, *flags]
    done = subprocess.run(command, env=clean_environment(chapter.root), capture_output=True, text=True)
    assert done.returncode not in (0, 130) and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1], snapshot(after)


@needs_namespaces
@pytest.mark.parametrize("number, free", [(1, 8), (2, 0), (3, 60), (4, 0)])
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_no_space_left_and_read_only(finished, number, free, fault):
    kept = snapshot(finished.output)
    blocks = sum(4 * (len(content) // 4096 + 2) for content in kept.values()) + free  # KB
    full = f'cp -r . ../all && mount -t tmpfs -o size={blocks}k tmpfs "{finished.output}" && cp -r ../all/. "{finished.output}" && dd if=/dev/zero of="{finished.output}/.fill" bs=1k 2>/dev/null'
    full += f'; truncate -s -{free}k "{finished.output}/.fill"'
    setup = {"full": full, "read-only": f'mount --bind . "{finished.output}" && mount -o remount,bind,ro "{finished.output}"'}[fault]
    line, left = run_in_a_namespace(finished, number, *(["--max-steps", "20"] if number == 3 else []), setup=setup)
    assert line.startswith("error: ") and {"full": "No space left on device", "read-only": "Read-only file system"}[fault] in line
    whole = [name for name, content in left.items() if name.endswith("trainer_state.json") and content.endswith(b"\n}\n")]
    assert line.endswith("with --resume") == bool(whole)
    assert {
        name: content for name, content in left.items() if "checkpoint-" not in name and not name.endswith(("run.json", "results/README.md"))
    } == kept


@pytest.mark.parametrize("number, folder", [(2, "base_model"), (3, "base_model"), (4, "dpo_results/final_model")])
def test_damaged_model(finished, number, folder):
    path = finished.output / folder / "model.safetensors"
    good = path.read_bytes()
    source = json.loads((path.parent / "source.json").read_text())["source"]  # of a model from a folder: its path
    again = f"run 0-download_model.py --model {source} --force" if folder == "base_model" else "run 3-train_dpo.py again"
    for bad in (good[:-100], good[:-100] + bytes([good[-100] ^ 1]) + good[-99:]):
        path.write_bytes(bad)
        assert finished.error(number) == f"error: output/{folder}/model.safetensors is not what was saved there (its sha256 differs); {again}"
    path.write_bytes(good)
    record = path.with_name("source.json")
    right = record.read_text()
    for bad in ("[]", "{}", '{"sha256": 1}'):
        record.write_text(bad)
        mend = "0-download_model.py --force" if folder == "base_model" else "3-train_dpo.py"
        assert finished.error(number) == f"error: output/{folder}/source.json is damaged; run {mend} again"
        if number == 2:
            assert finished.error(0) == "error: output/base_model/source.json is damaged; --force replaces the model"
    record.write_text(right)
    (finished.output / folder / "tokenizer.json").unlink()
    assert finished.error(number) == f"error: output/{folder}/tokenizer.json is missing; {again}"


@pytest.mark.parametrize(
    "batch_size, lora, advice",
    [(8, False, "lower --batch-size from 8 to 4"), (1, False, "train with --lora"), (1, True, "shorten the longest pairs")],
)
def test_out_of_memory_names_the_flag(batch_size, lora, advice):
    """With the error of a real allocation that fails."""
    import torch

    with pytest.raises(RuntimeError) as failed:
        torch.empty(10**15)
    with pytest.raises(SystemExit, match=f"error: out of memory; {advice}"):
        explain(failed.value, batch_size, lora)


def test_out_of_memory_in_a_run(tiny):
    """The system gives the process what a step with one pair needs, and half a GB more; 32 long pairs at a time want more than that."""
    pairs = [{"prompt": f"{number} " + "long " * 150, "chosen": "yes " * 200, "rejected": "no " * 300} for number in range(64)]
    (tiny.output / "preference_data.json").write_text(json.dumps(pairs))
    process, most = tiny.start(3, "--max-steps", "2", "--batch-size", "1", pipe=subprocess.DEVNULL), 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            most = max(most, psutil.Process(process.pid).memory_info().vms)
        time.sleep(0.01)
    assert process.returncode == 0
    kept = snapshot(results(tiny))
    limit = f"--as={most + 2**29}"
    script = str(tiny.root / "code/chapter02_dpo" / SCRIPTS["3"].name)
    command = ["prlimit", limit, sys.executable, script, "--max-steps", "2", "--batch-size", "32"]
    done = subprocess.run(command, env=clean_environment(tiny.root), capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: out of memory; lower --batch-size from 32 to 16"
    assert {name: content for name, content in snapshot(results(tiny)).items() if name != "run.json"} == kept


def test_nan_after_a_checkpoint_names_the_pair_and_keeps_the_checkpoint(tiny):
    """A token that the model cannot read, here a row of the embeddings that holds NaN, stands in one pair, which is met after step 20."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, rows = tiny.output / "base_model", tiny.output / "preference_data.json"
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach().clone())
    snowman = AutoTokenizer.from_pretrained(folder)("\u2603")["input_ids"]
    model.get_input_embeddings().weight.data[snowman[-1]] = float("nan")
    model.save_pretrained(folder)
    source = json.loads((folder / "source.json").read_text())
    source["sha256"] = {"model.safetensors": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}
    (folder / "source.json").write_text(json.dumps(source))
    pairs = json.loads(rows.read_text())
    pairs[16]["prompt"] += " \u2603"
    rows.write_text(json.dumps(pairs))
    line = tiny.error(3, *FLAGS)
    step = int(re.fullmatch(r"error: training diverged at step (\d+), on .*preference_data.json item 17\b.*; checkpoint-\d+ is kept", line)[1])
    kept = max(int(path.name.split("-")[1]) for path in results(tiny).glob("checkpoint-*"))
    assert 20 <= kept < step < 60 and checkpoint_whole(tiny, kept) and not (results(tiny) / "final_model").exists()
    assert all(tensor.isfinite().all() for name, tensor in weights(results(tiny) / f"checkpoint-{kept}").items() if "embed" not in name)
