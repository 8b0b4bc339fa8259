"""Preference data as chat messages, or a line for each item that cannot be trained on. To read another form, convert it in as_messages()."""

import json
from pathlib import Path

from toolkit.console import fail
from toolkit.files import read_json
from toolkit.models import as_conversation, special_tokens
from toolkit.paths import short

ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}


def read_pairs(path: Path, tokenizer, longest: int) -> list[dict]:
    """Read preference pairs as chat messages, or end the script with up to ten lines, one for each item that cannot be trained on.

    The file is a JSON list of objects with prompt, chosen and rejected. Each is a text, or a list of messages {"role", "content"}; chosen and
    rejected may repeat the messages of the prompt, as in many data sets of the hub. TRL applies the chat template to messages only.
    """
    from jinja2 import TemplateError

    rows, name = read_json(path), short(path)
    if not isinstance(rows, list) or not rows:
        fail(f'{name} must be a list of {{"prompt", "chosen", "rejected"}} objects that is not empty; mend it, or run 1-generate_data.py again')
    special, pairs, problems, numbers = special_tokens(tokenizer), [], [], {}
    for number, row in enumerate(rows, 1):
        try:
            pair = as_messages(row, special)
            tokens = [len(tokenizer.apply_chat_template(pair["prompt"] + pair[key], return_dict=True)["input_ids"]) for key in ("chosen", "rejected")]
            if max(tokens) > longest:
                raise ValueError(f"has {max(tokens):,} tokens, and the model reads at most {longest:,}; shorten it")
            prompt, chosen, rejected = (str(pair[key]) for key in ROLES)
            if other := numbers.get((prompt, rejected, chosen)):
                raise ValueError(f"contradicts item {other}, where chosen and rejected are exchanged; take one of them out")
            numbers[prompt, chosen, rejected] = number
            pairs.append(pair)
        except (ValueError, TemplateError) as error:
            problems.append(f"{name}, item {number}: {error}")
    if problems:
        if len(problems) > 10:
            problems[9:] = [f"{name} has {len(problems) - 9} more items that cannot be trained on"]
        fail("\nerror: ".join(problems))
    return pairs


def as_messages(row: object, special: list[str]) -> dict:
    """Return an item of a file of pairs as three lists of chat messages, or raise ValueError with what is wrong with it and the mend."""
    if not isinstance(row, dict):
        raise ValueError(f"must be an object with prompt, chosen and rejected, and is {json.dumps(row)[:40]}")
    pair = {}
    for key, role in ROLES.items():
        if key not in row:
            raise ValueError(f'has no "{key}", only {json.dumps(list(row))[:80]}; rename or add it')
        messages = row[key]
        if isinstance(messages, str):
            messages = as_conversation(messages) if role == "user" else [{"role": role, "content": messages}]
        try:
            texts = [message["content"] for message in messages]
            whole = all(isinstance(text, str) and text.encode().strip() for text in texts) and messages[-1]["role"] == role
            whole = whole and all(message["role"] in ("system", "user", "assistant") for message in messages)
        except (KeyError, IndexError, TypeError, UnicodeEncodeError):
            whole = False
        if not whole:
            raise ValueError(f'"{key}" must be a text that is not empty, or a list of such messages whose last is of the {role}')
        for token in special:
            if any(token in text for text in texts):
                raise ValueError(f'"{key}" holds {token}, which is no text to the model; take it out')
        pair[key] = [{"role": message["role"], "content": message["content"]} for message in messages]
    for key in ("chosen", "rejected"):
        if pair[key][:-1] not in ([], pair["prompt"]):
            raise ValueError(f'"{key}" must be one answer, or begin with the messages of "prompt"')
        pair[key] = pair[key][-1:]
    if pair["chosen"] == pair["rejected"]:
        raise ValueError("chosen and rejected are the same text; make them differ")
    return pair


def item_names(path: Path, rows: list[dict]) -> list[str]:
    """Return what messages call each item of a file: "output/preference_data.json item 7"."""
    return [f"{short(path)} item {number}" for number in range(1, len(rows) + 1)]
