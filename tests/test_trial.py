"""Step 0 tries a model out: what it sets right, so that the other steps run, and what it refuses in a line that says the mend."""

import json
import shutil

import pytest

from conftest import Chapter
from families import FAMILIES, make_model, make_tokenizer, shipped_template
from hub_server import Hub
from test_families import few
from test_train import results, weights
from toolkit import trial
from toolkit.models import load_model

MODEL = "some-org/a-model"
ANOTHER = "; choose another model (--model Qwen/Qwen2.5-0.5B-Instruct is the chapter's)"


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model, to be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def change(path, **parts) -> None:
    """Change keys of a JSON file; None takes one out."""
    data = json.loads(path.read_text()) | parts
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def refused(folder) -> str:
    """Return why a model is refused, in one line."""
    with pytest.raises(trial.Unfit) as error:
        trial.try_out(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def through_all_steps(chapter, folder) -> str:
    """Run steps 0 to 4 with a model, and return what step 0 printed."""
    out = chapter.ok(0, "--model", str(folder))
    chapter.ok(1)
    few(chapter)
    chapter.ok(2)
    chapter.ok(3, "--max-steps", "1")
    chapter.ok(4)
    return out


# ---- Refused -------------------------------------------------------------------------------------------------------------------------
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 110000\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_git_lfs_pointers(chapter, folder, tiny_model, name):
    """The line names file and mend, and the model that was there stays. The folder as `git lfs pull` leaves it is taken."""
    chapter.ok(0, "--model", str(tiny_model))
    kept = {path.name: path.read_bytes() for path in (chapter.output / "base_model").iterdir()}
    (folder / name).write_text(POINTER)
    line = chapter.error(0, "--model", str(folder), "--force")
    assert line == f"error: {folder}: {name} is the pointer of Git LFS and not the file; run `git lfs pull` in that folder, then this again"
    assert {path.name: path.read_bytes() for path in (chapter.output / "base_model").iterdir()} == kept
    assert [path.name for path in chapter.output.iterdir()] == ["base_model"]
    shutil.copyfile(tiny_model / name, folder / name)
    chapter.ok(0, "--model", str(folder), "--force")


def test_damaged_weights(folder):
    good = (folder / "model.safetensors").read_bytes()
    for bad in (good[:-100], good[:50], b"", b"\0" * 200, b"<html>404</html>"):
        (folder / "model.safetensors").write_bytes(bad)
        assert refused(folder).startswith("model.safetensors is damaged (") and refused(folder).endswith("; fetch it again")


def test_weights_of_which_a_part_is_missing(folder):
    from safetensors.torch import save_file

    parts = weights(folder)
    del parts["model.layers.1.mlp.up_proj.weight"], parts["model.norm.weight"]
    save_file(parts, folder / "model.safetensors", {"format": "pt"})
    assert refused(folder) == "its weights lack 2 parts, such as model.layers.1.mlp.up_proj.weight; fetch it again, or " + ANOTHER[2:]


def test_weights_that_are_no_numbers(folder):
    from safetensors.torch import save_file

    parts = weights(folder)
    parts["model.norm.weight"][:] = float("nan")
    save_file(parts, folder / "model.safetensors", {"format": "pt"})
    assert refused(folder) == "its weights give no numbers (NaN) in fp32" + ANOTHER


@pytest.mark.parametrize(
    "file, parts, method",
    [
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ("config.json", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "compressed-tensors"}}}, "compressed-tensors"),
        ("config.json", {"quantization": {"bits": 4, "group_size": 64}}, "its config says so"),  # MLX
        ("quantize_config.json", {"bits": 4}, "its config says so"),
    ],
)
def test_quantised(folder, file, parts, method):
    if not (folder / file).exists():
        (folder / file).write_text("{}")
    change(folder / file, **parts)
    mend = "take the same model without -bnb-4bit, -GPTQ, -AWQ, -FP8 or the like at the end of its name"
    assert refused(folder) == f"it is quantised ({method}) and cannot be trained; {mend}"


def test_quantised_and_the_config_does_not_say_so(folder):
    import torch
    from safetensors.torch import save_file

    parts = weights(folder)
    parts["model.layers.0.mlp.up_proj.weight"] = torch.zeros(64, 8, dtype=torch.int32)
    save_file(parts, folder / "model.safetensors", {"format": "pt"})
    assert refused(folder).startswith("it is quantised (model.safetensors holds weights as I32) and cannot be trained; take the same model without")


def test_a_quantised_model_of_the_hub_is_refused_before_its_weights_are_fetched(chapter, folder):
    change(folder / "config.json", quantization_config={"quant_method": "gptq"})
    hub = Hub(MODEL, folder)
    line = chapter.error(0, "--model", MODEL, "--source", "hub", HF_ENDPOINT=hub.url)
    hub.close()
    assert line.startswith(f"error: {MODEL}: it is quantised (gptq) and cannot be trained; ")
    assert not [path for command, path, _ in hub.requests if command == "GET" and path.endswith("safetensors")] and hub.requests
    assert not list(chapter.output.iterdir())


def test_unknown_model_type(folder):
    import transformers

    change(folder / "config.json", model_type="qwen9")
    line = f"its model_type 'qwen9' is unknown to transformers {transformers.__version__}, which is pinned"
    assert refused(folder) == line + ANOTHER
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    assert refused(folder) == line + " and comes with code of its own (auto_map), which is never run here" + ANOTHER
    (folder / "config.json").write_text("{")
    assert refused(folder).startswith("config.json is damaged or tells no model_type (")
    (folder / "config.json").write_text('{"model_type": "vit"}')
    assert refused(folder) == "its model_type 'vit' is none that writes text" + ANOTHER


def test_code_of_its_own_is_never_run(folder, tmp_path):
    """The library knows model and tokenizer without it."""
    for name in ("modeling", "tokenization"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    change(folder / "config.json", auto_map={"AutoConfig": "modeling.Own", "AutoModelForCausalLM": "modeling.Own"})
    assert trial.try_out(folder) == []
    change(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["tokenization.Own", None]})
    assert trial.try_out(folder) == []
    assert not (tmp_path / "run").exists()


def with_template(folder, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)


def test_no_template(chapter, folder):
    (folder / "chat_template.jinja").unlink()
    data = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(data))
    line = chapter.error(0, "--model", str(folder))
    assert line == f"error: {folder}: it has no chat template, so it is no chat model; choose one whose name ends in Instruct or Chat"
    assert not list(chapter.output.iterdir())


CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    "template, reason",
    [
        ("{% for m in messages %}", "its chat template cannot render a question, an answer and a question ("),
        (CHATML + ASK + "{{ raise_exception('no') }}", "its chat template cannot render a question, an answer and a question (no)"),
        ("{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + CHATML + ASK, "cannot render a question, an answer and a question (one turn)"),
        (CHATML.replace("m['content']", "m['content'][0]['text']") + ASK, "its chat template leaves out what is said"),
        (CHATML.replace("{{ m['content'] }}", "{% for part in m['content'] if part.type == 'text' %}{{ part.text }}{% endfor %}") + ASK, "its chat template leaves out what is said"),
        (CHATML + ASK.replace("assistant\n", "assistant\n<think>\n"), "its chat template begins each answer with a thought (<think>), and cannot be told not to"),
        (CHATML + ASK.replace("assistant", "bot"), "its chat template begins an answer in training otherwise than when the model is asked"),
        (CHATML.replace("<|im_end|>", "") + ASK, "its chat template ends an answer without a token for that, so that no answer would ever end"),
        (CHATML.replace("<|im_end|>", "</end>") + ASK, "its chat template ends an answer without a token for that, so that no answer would ever end"),
        ("deepseek_r1_distill", "its chat template begins each answer with a thought (<think>), and cannot be told not to"),
        ("idefics3", "its chat template"),
        ("llava_next", "its chat template"),
    ],
)  # fmt: skip
def test_templates_that_the_steps_cannot_use(folder, template, reason):
    with_template(folder, template if "{" in template else shipped_template(template))
    line = refused(folder)
    assert reason in line and line.endswith(ANOTHER)


def test_a_model_that_trl_cannot_train(tmp_path, monkeypatch):
    """TRL's head reads what the part below the model's own head returns; that of Llama 4's text model returns something else."""
    more = {"attention_chunk_size": 32, "num_local_experts": 2, "intermediate_size_mlp": 64}
    monkeypatch.setitem(FAMILIES, "llama4", ("Llama4TextConfig", more, "llama3", "<|eot_id|>"))
    assert refused(make_model("llama4", tmp_path / "model")).startswith("it cannot be used here (AttributeError: ")


def test_what_nobody_foresaw_is_refused_in_one_line(folder, monkeypatch):
    def fail(*_, **__):
        raise AttributeError("'Model' object has no attribute 'x'\nat all")

    monkeypatch.setattr(trial, "ask_and_score", fail)
    assert refused(folder) == "it cannot be used here (AttributeError: 'Model' object has no attribute 'x' at all)" + ANOTHER
    monkeypatch.setattr(trial, "ask_and_score", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory. Tried")))
    assert refused(folder) == "it is too large for the memory of this machine; choose a smaller one"


# ---- Set right -----------------------------------------------------------------------------------------------------------------------
def add_token(folder, token: str, special: bool, **names: str) -> None:
    """Add a token to a tokenizer, for which the embeddings get no row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([token], special_tokens=special)
    for name, value in names.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)


def test_a_pad_token_without_a_row(chapter, folder):
    """Row 4 of issue 27: the steps run, and final_model/ loads."""
    from transformers import AutoModelForCausalLM

    add_token(folder, "[PAD]", True, pad_token="[PAD]")
    out = through_all_steps(chapter, folder)
    assert "\n  its tokenizer pads with [PAD], for which the embeddings have no row; <|im_end|> is set for that\n" in out
    assert AutoModelForCausalLM.from_pretrained(results(chapter) / "final_model").config.pad_token_id == 2


def test_no_pad_token(chapter, tmp_path):
    folder = make_model("llama3", tmp_path / "model")
    change(folder / "tokenizer_config.json", pad_token=None)
    out = through_all_steps(chapter, folder)
    assert "\n  its tokenizer has no token to pad with; <|eot_id|> is set for that\n" in out


def test_a_special_token_without_a_row_that_never_comes_up(folder):
    """As <image_soft_token> of Gemma 3, which as a special token no text may hold."""
    add_token(folder, "<image_soft_token>", True)
    assert trial.try_out(folder) == []


@pytest.mark.parametrize("special", [False, True])
def test_tokens_without_a_row_that_come_up(folder, special):
    """A word, or what the template ends an answer with. After the mend that the line gives, the model is taken."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    token = "<|end|>" if special else "education"
    add_token(folder, token, special)
    if special:
        with_template(folder, CHATML.replace("<|im_end|>", "<|end|>") + ASK)
    line = refused(folder)
    assert line.startswith(
        f"its tokenizer has {token}, and its embeddings, of 259 rows, have none for it; model.resize_token_embeddings(len(tokenizer))"
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder)))
    model.save_pretrained(folder)
    trial.try_out(folder)


def test_token_type_ids(chapter, folder):
    change(folder / "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    through_all_steps(chapter, folder)


def test_a_model_that_would_not_stop_where_its_answers_end(folder):
    """A base model with a chat template, whose config names another end."""
    change(folder / "config.json", eos_token_id=0)
    change(folder / "generation_config.json", eos_token_id=0)
    assert trial.try_out(folder) == ["it was not set to stop at <|im_end|>, with which its answers end in training; now it is"]
    assert load_model(folder)[0].generation_config.eos_token_id == [0, 2]
    assert trial.try_out(folder) == []


def test_a_generation_config_that_could_not_be_saved(chapter, folder):
    """As that of Llama 2: with sampling's settings and without sampling; transformers refuses to save it once the training has touched it."""
    change(folder / "generation_config.json", temperature=0.6, top_p=0.9, do_sample=False, eos_token_id=0)
    assert "\n  its generation_config.json contradicts itself about sampling; it is set to do_sample\n" in through_all_steps(chapter, folder)


def test_thinking_is_turned_off_and_may_be_turned_on(tmp_path):
    from transformers import AutoTokenizer

    folder = make_model("qwen3", tmp_path / "model")
    assert trial.try_out(folder) == ["its chat template lets it think before it answers; this is turned off"]
    assert trial.try_out(folder) == []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question, other = [{"role": "user", "content": "Is it?"}], make_tokenizer(shipped_template("qwen3"), "<|im_end|>")
    for thinks, flag in ((False, {}), (False, {"enable_thinking": False}), (True, {"enable_thinking": True})):
        text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False, **flag)
        assert text == other.apply_chat_template(question, add_generation_prompt=True, tokenize=False, enable_thinking=thinks)
    assert tokenizer.padding_side == "right"


def test_a_reply_that_holds_a_thought_ends_no_run(tmp_path):
    """Row 10 of issue 27: a model that thinks all the same, its reply made up here, goes through the measure."""
    chapter = Chapter(tmp_path / "a chapter")
    chapter.ok(0, "--model", str(make_model("qwen3", tmp_path / "model")))
    chapter.ok(1)
    few(chapter)
    module = chapter.root / "code/chapter02_dpo/toolkit/measure.py"
    text = module.read_text()
    call = "    answered = zip(prompts, ask(model, tokenizer, list(map(as_conversation, prompts))))\n"
    assert text.count(call) == 1
    made_up = "[(text, False) for text in ('<think>\\nHm.\\n</think>\\n\\nIt is so.', '<think>\\nHm.', '')] * len(prompts)"
    module.write_text(text.replace(call, f"    answered = zip(prompts, {made_up})\n"))
    chapter.ok(2)
    assert len(json.loads((chapter.output / "before.json").read_text())["heldout"]) == 8


def test_a_good_model_is_taken_as_it_is(tiny_model, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert trial.try_out(folder) == []
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
