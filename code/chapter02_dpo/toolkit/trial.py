"""The proof that a model is one that steps 2 to 4 can use: all that they do with it, once and small, before it takes the place of another."""

import json
import re
import tempfile
from importlib.metadata import version
from pathlib import Path

from toolkit.models import as_conversation, load_tokenizer, log_likelihoods, opened, quiet_libraries

CHAPTER_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
ANOTHER = f"choose another model (--model {CHAPTER_MODEL} is the chapter's)"
POINTER = b"version https://git-lfs"  # how the text begins that Git LFS leaves in the place of a file
SUFFIXES = "-bnb-4bit, -GPTQ, -AWQ, -FP8 or the like"
SAID, ANSWER = ["Is the sky green?", "No, it is blue. Is it not?"], "You are right."


class Unfit(Exception):
    """The other steps could not use the model; the message says in one line why, and what to do or to take instead."""


def quantised(how: str) -> Unfit:
    return Unfit(f"it is quantised ({how}) and cannot be trained; take the same model without {SUFFIXES} at the end of its name")


def in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def answered() -> list[dict]:
    """Return a conversation as it is trained on: a question, and the answer."""
    return [*as_conversation(SAID[0]), {"role": "assistant", "content": ANSWER}]


def check_config(folder: Path) -> None:
    """Raise Unfit if config.json, and what else there is of JSON, tells already that the model cannot be used: needs no weights."""
    for path in folder.iterdir():
        if path.is_file() and path.open("rb").read(len(POINTER)) == POINTER:
            raise Unfit(f"{path.name} is the pointer of Git LFS and not the file; run `git lfs pull` in that folder, then this again")
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kind = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise Unfit(f"config.json is damaged or tells no model_type ({in_one_line(error)}); fetch it again, or {ANOTHER}") from None
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    quantized = [part[key] for part in parts for key in ("quantization_config", "quantization") if part.get(key)]
    if quantized or any((folder / name).exists() for name in ("quantize_config.json", "quant_config.json")):
        method = quantized and isinstance(quantized[0], dict) and quantized[0].get("quant_method")
        raise quantised(method or "its config says so")
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    if kind not in CONFIG_MAPPING:
        code = " and comes with code of its own (auto_map), which is never run here" if "auto_map" in config else ""
        raise Unfit(f"its model_type {kind!r} is unknown to transformers {version('transformers')}, which is pinned{code}; {ANOTHER}")
    if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Unfit(f"its model_type {kind!r} is none that writes text; {ANOTHER}")


def check_weights(folder: Path) -> None:
    """Raise Unfit unless each file of weights is whole, as long as its header says, and none is quantised."""
    from safetensors import SafetensorError, safe_open

    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                kinds = {file.get_slice(name).get_dtype() for name in file.keys() if "weight" in name}
        except SafetensorError as error:
            raise Unfit(f"{path.name} is damaged ({in_one_line(error)}); fetch it again") from None
        if packed := kinds - {"F64", "F32", "F16", "BF16"}:
            raise quantised(f"{path.name} holds weights as {packed.pop()}")


def try_out(folder: Path) -> list[str]:
    """Do with a model once what steps 2 to 4 do, and return a line on each thing that had to be set right in its folder. Raise Unfit otherwise."""
    quiet_libraries()  # and not before: it would hide the progress of a download
    check_config(folder)
    check_weights(folder)
    try:
        tokenizer = load_tokenizer(folder)
        model = load(folder)
        mended = check_template(tokenizer)
        mended += check_tokens(tokenizer, model)
        if mended:
            tokenizer.padding_side = "right"
            tokenizer.save_pretrained(folder)
            tokenizer = load_tokenizer(folder)
        mended += check_stops(tokenizer, model, folder)
        ask_and_score(tokenizer, model)
        save_and_read(tokenizer, model)
    except (Unfit, OSError):
        raise
    except Exception as error:  # whatever a library finds, it would find it in the next step too
        if isinstance(error, MemoryError) or re.search("out of memory|not enough memory|allocate memory", str(error)):
            raise Unfit("it is too large for the memory of this machine; choose a smaller one") from None
        raise Unfit(f"it cannot be used here ({type(error).__name__}: {in_one_line(error)}); {ANOTHER}") from None
    return mended


def load(folder: Path):
    """Return the model of a folder as step 2 loads it, but on the CPU: for two tokens that is fast enough, and step 0 needs no GPU. Raise Unfit
    if the folder lacks a part of the model, which would be made up at random."""
    import torch
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    if found["missing_keys"]:
        raise Unfit(f"its weights lack {len(found['missing_keys'])} parts, such as {sorted(found['missing_keys'])[0]}; fetch it again, or {ANOTHER}")
    return model.eval()


def check_template(tokenizer) -> list[str]:
    """Turn thinking off in the chat template, and say so, if it knows how to. Raise Unfit unless it renders what steps 2 to 4 use, and begins an
    answer as it does in training."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise Unfit("it has no chat template, so it is no chat model; choose one whose name ends in Instruct or Chat")
    mended, question = [], as_conversation(SAID[0])
    try:
        start = opened(tokenizer, question)
        if start != tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False, enable_thinking=False):
            tokenizer.chat_template = "{%- set enable_thinking = enable_thinking | default(false) %}" + tokenizer.get_chat_template()
            start = opened(tokenizer, question)
            mended.append("its chat template lets it think before it answers; this is turned off")
        texts = [start, opened(tokenizer, as_conversation(SAID[1], answered())), tokenizer.apply_chat_template(answered(), tokenize=False)]
    except (TemplateError, TypeError, ValueError) as error:
        raise Unfit(f"its chat template cannot render a question, an answer and a question ({in_one_line(error)}); {ANOTHER}") from None
    if not all(said in text for said, text in zip((SAID[0], SAID[1], ANSWER), texts)):
        raise Unfit(f"its chat template leaves out what is said; {ANOTHER}")
    if start.rfind("<think>") > start.rfind("</think>"):
        raise Unfit(f"its chat template begins each answer with a thought (<think>), and cannot be told not to; {ANOTHER}")
    asked, trained = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (start, texts[2]))
    if trained[: len(asked)] != asked:
        raise Unfit(f"its chat template begins an answer in training otherwise than when the model is asked; {ANOTHER}")
    return mended


def end_of_answer(tokenizer) -> int | None:
    """Return the special token that the chat template ends an answer with, or None."""
    text = tokenizer.apply_chat_template(answered(), tokenize=False)
    ids = tokenizer(text[text.rindex(ANSWER) + len(ANSWER) :].lstrip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder) else None


def check_tokens(tokenizer, model) -> list[str]:
    """Set the token that pads a batch. Raise Unfit unless the embeddings have a row for each token that can come up, and one ends an answer."""
    mended, rows = [], model.get_input_embeddings().num_embeddings
    if (end := end_of_answer(tokenizer)) is None:
        raise Unfit(f"its chat template ends an answer without a token for that, so that no answer would ever end; {ANOTHER}")
    beyond = [token for token, number in tokenizer.get_vocab().items() if number >= rows]
    if tokenizer.eos_token in [None, *beyond]:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        mended.append(f"its tokenizer knows no end; {tokenizer.eos_token} is set as such")
    if tokenizer.pad_token in [None, *beyond]:
        why = "has no token to pad with" if tokenizer.pad_token is None else f"pads with {tokenizer.pad_token}, for which the embeddings have no row"
        tokenizer.pad_token = tokenizer.eos_token
        mended.append(f"its tokenizer {why}; {tokenizer.pad_token} is set for that")
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]  # no text may hold these
    used = tokenizer.apply_chat_template(answered(), return_dict=True)["input_ids"]
    if lost := [token for token in beyond if token not in special or tokenizer.convert_tokens_to_ids(token) in used]:
        mend = "model.resize_token_embeddings(len(tokenizer)) gives it one, then model.save_pretrained(folder)"
        raise Unfit(f"its tokenizer has {lost[0]}, and its embeddings, of {rows} rows, have none for it; {mend}, or {ANOTHER}")
    return mended


def check_stops(tokenizer, model, folder: Path) -> list[str]:
    """Set the tokens at which a reply ends: as the chat template ends one, and as the training will set them. Return a line if they were others."""
    config, mended = model.generation_config, []
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    needed = {end_of_answer(tokenizer), tokenizer.eos_token_id}
    if not needed <= set(stops):
        config.eos_token_id = sorted({*stops, *needed} - {None})
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(needed - set(stops))))
        mended.append(f"it was not set to stop at {names}, with which its answers end in training; now it is")
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True  # or what is said there of sampling forbids that the tuned model is saved; we ask without sampling all the same
        config.validate(strict=True)
        mended.append("its generation_config.json contradicts itself about sampling; it is set to do_sample")
    if mended:
        config.save_pretrained(folder)
    return mended


def ask_and_score(tokenizer, model) -> None:
    """Ask, score and read as in training, two short rows each. Raise Unfit if what comes out is no number."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    batch = tokenizer.apply_chat_template(
        [as_conversation(text) for text in SAID], add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    model.generate(**batch, max_new_tokens=2, do_sample=False)
    openings = [[{"role": "assistant", "content": f"{text} In short:"}] for text in ("<think>\n\n</think>\n\nNo.", ANSWER)]
    scores = log_likelihoods(model, tokenizer, openings, [[" It is green.", " It is blue."]] * 2)
    add_fused_lm_head(model)  # with which TRL's trainer reads a row
    with torch.no_grad():
        loss = model.train()(**batch, labels=batch["input_ids"], fused_lm_head=True).loss.item()
    if not torch.tensor(scores).isfinite().all() or loss != loss:
        raise Unfit(f"its weights give no numbers (NaN) in fp32; {ANOTHER}")


def save_and_read(tokenizer, model) -> None:
    """Save configs and tokenizer as step 3 does, without the weights, and read them again. Raise Unfit if the copy reads a question otherwise."""
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as copy:
        for part in (model.config, model.generation_config, tokenizer):
            part.save_pretrained(copy)
        AutoConfig.from_pretrained(copy)
        other = load_tokenizer(Path(copy))
        if other.apply_chat_template(as_conversation(SAID[0])) != tokenizer.apply_chat_template(as_conversation(SAID[0])):
            raise Unfit(f"its tokenizer is another one after it was saved by transformers {version('transformers')}; {ANOTHER}")
