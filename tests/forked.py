"""A quick way to start a script: forked from a process that has imported the libraries already, which saves each start several seconds.

All else is as with a command of its own: process, signals, pipes, environment. A test says `as_command=True` where the start itself
matters, and tests/test_real.py, which trains the real model, always does.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

# What the scripts set before they import the libraries, for the process that imports them once for all.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}
LIBRARIES = ["torch", "transformers", "datasets", "peft", "trl.trainer.dpo_trainer", "transformers.models.qwen2.modeling_qwen2", "rich.table"]
LIBRARIES += ["matplotlib.pyplot", "matplotlib.backends.backend_svg", "jinja2", "transformers.generation.utils", "torch._dynamo", "tqdm"]
FORKS = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
if FORKS:
    FORKS.set_forkserver_preload(LIBRARIES)


def run_script(command: list[str], cwd: Path, env: dict[str, str], out: Connection | None, err: Connection | None) -> None:
    """In a forked process: be the command."""
    os.environ.clear()
    os.environ |= env
    os.chdir(cwd)
    for number, pipe in ((1, out), (2, err)):
        os.dup2(pipe.fileno() if pipe else os.open(os.devnull, os.O_WRONLY), number)
        if pipe:
            pipe.close()
    sys.stdout = open(1, "w", 1 if "PYTHONUNBUFFERED" in env else -1, encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", 1, encoding="utf-8", closefd=False)
    script, *sys.argv[1:] = command
    sys.argv[0] = script
    sys.path[:0] = [str(Path(script).parent)]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.stdout.flush()


class Forked:
    """A forked script, with what of subprocess.Popen the tests use."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str], pipe: int):
        self.args, ends = command, []
        self.stdout = self.stderr = None
        if pipe == subprocess.PIPE:
            for name in ("stdout", "stderr"):
                read, write = os.pipe()
                setattr(self, name, open(read, encoding="utf-8"))
                ends.append(Connection(write, readable=False))
        self.process = FORKS.Process(target=run_script, args=(command, cwd, env, *(ends or [None, None])))
        self.process.start()
        for end in ends:
            end.close()
        self.pid, self.send_signal, self.kill = self.process.pid, self.signal, self.process.kill

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        texts = ["", ""]

        def read(index: int, file) -> None:
            texts[index] = file.read()
            file.close()

        threads = [Thread(target=read, args=(index, file)) for index, file in enumerate((self.stdout, self.stderr))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.wait()
        return tuple(texts)
