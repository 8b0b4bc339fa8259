"""A copy of the chapter to run the scripts in, and the tiny model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from forked import FORKS, Forked

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "code/chapter02_dpo"
SCRIPTS = {path.name[0]: path for path in sorted(CHAPTER.glob("[0-4]-*.py"))}
UNSHARE = ["unshare", "--map-root-user", "--mount", "--net"]  # a process with mounts of its own and without a network
needs_namespaces = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode != 0,
    reason="needs unshare and the right to use it (Linux)",
)
sys.path.insert(0, str(CHAPTER))  # `from toolkit import ...`, as in the scripts


def clean_environment(root: Path) -> dict[str, str]:
    """The environment without the reader's settings of hub and accelerate, and proxy; on the CPU, where runs repeat bit for bit; 100 columns."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MODELSCOPE_", "ACCELERATE_", "MPLBACKEND"))}
    return env | {
        "HF_HOME": str(root / "hf_home"),
        "MODELSCOPE_CACHE": str(root / "modelscope"),
        "MODELSCOPE_HOME": str(root / "modelscope"),
        "MODELSCOPE_ENDPOINT": "http://127.0.0.1:9",  # where nobody listens
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "100",
        "PYTHONUTF8": "1",
    }


RUNS_THE_CHAPTER = {"tiny", "real", "whole_run", "finished", "reported", "hub"}  # fixtures of tests that train, generate or download
SLOW_FILES = {"test_download.py", "test_families.py", "test_forms.py", "test_machines.py", "test_trial.py"}  # each over half a minute


def pytest_configure(config):
    config.addinivalue_line("markers", "quick: trains and generates nothing; bash tests/run.sh quick")
    config.addinivalue_line("markers", "slow: takes long although none of the fixtures says so")


def pytest_collection_modifyitems(items):
    """Mark the quick tests; and the real model first: that file takes longest, and the other process has all others meanwhile."""
    for item in items:
        slow = item.get_closest_marker("slow") or item.path.name in SLOW_FILES
        if not slow and not RUNS_THE_CHAPTER & set(item.fixturenames):
            item.add_marker("quick")
    items.sort(key=lambda item: item.path.name != "test_real.py")


class Chapter:
    """A copy of the chapter in a folder of its own, with an output/ of its own."""

    def __init__(self, root: Path):
        self.root = root
        self.output = root / "output"
        shutil.copytree(ROOT / "code", root / "code", ignore=shutil.ignore_patterns("__pycache__"))

    def start(self, number: int | str, *flags: str, cwd: Path | None = None, pipe=subprocess.PIPE, as_command=False, **environment: str):
        script = self.root / "code/chapter02_dpo" / SCRIPTS[str(number)].name
        env = clean_environment(self.root) | environment
        # What of the environment is read while the libraries are imported, a process that has imported them does not read again.
        if FORKS and not as_command and str(number) in "0234" and not any(name.startswith(("HF_", "PYTHON")) for name in environment):
            return Forked([str(script), *flags], cwd or self.root, env, pipe)
        return subprocess.Popen([sys.executable, str(script), *flags], cwd=cwd or self.root, env=env, text=True, stdout=pipe, stderr=pipe)

    def run(self, number: int | str, *flags: str, **options) -> subprocess.CompletedProcess:
        """Run a script to its end."""
        process = self.start(number, *flags, **options)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def ok(self, number: int | str, *flags: str, **options) -> str:
        """Run a script that must succeed, and return what it printed."""
        done = self.run(number, *flags, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def error(self, number: int | str, *flags: str, **options) -> str:
        """Run a script that must fail with one clear line, and return that line."""
        done = self.run(number, *flags, **options)
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr, done.stderr
        line = done.stderr.strip().splitlines()[-1]
        assert "error: " in line, done.stderr
        return line


@pytest.fixture
def chapter(tmp_path) -> Chapter:
    return Chapter(tmp_path / "a chapter")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random Qwen2 of about 60,000 parameters, with a byte-level tokenizer and Qwen's form of chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-qwen2"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=2048, tie_word_embeddings=True, eos_token_id=2, pad_token_id=0, bos_token_id=None,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(chapter, tiny_model) -> Chapter:
    """A chapter whose base model is the tiny one, with the data of step 1."""
    chapter.ok(0, "--model", str(tiny_model))
    chapter.ok(1)
    return chapter
