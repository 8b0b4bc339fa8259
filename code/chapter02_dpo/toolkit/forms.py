"""The forms of preference data: an item of TRL's own or of the usual data sets, turned into chat messages.

    {"prompt", "chosen", "rejected"}     texts or messages; the answers may repeat the messages of the prompt, as in UltraFeedback
    {"chosen", "rejected"}               whole chats that differ in the last message: TRL's implicit prompt
    {"chosen", "rejected"}               texts "Human: ... Assistant: ...", each turn after an empty line: HH-RLHF
    {"conversations", "chosen", "rejected"}                              ShareGPT, its messages being {"from", "value"}
    {"instruction", "input", "system", "history", "chosen", "rejected"}  Alpaca, as LLaMA-Factory reads it
    {"system", "question", "chosen", "rejected"}                         Orca pairs
    {"messages", "rejected_response"}                                    ms-swift: the last message is the chosen answer
    {"input": {"messages"}, "preferred_output", "non_preferred_output"}  OpenAI

We do without TRL's extract_prompt, which cuts texts at the first letter that differs, and without its maybe_convert_to_chatml, which changes the
item itself and leaves "human" and "gpt" as they are.
"""

import json
import re

from toolkit.console import is_unicode
from toolkit.models import as_conversation

PROMPT_COLUMNS = ("prompt", "question", "query", "instruction", "input", "conversations", "messages")
ANSWER_COLUMNS = {"chosen": ("chosen", "preferred_output"), "rejected": ("rejected", "rejected_response", "non_preferred_output")}
SYSTEM_COLUMNS = ("system", "system_prompt")
HELDOUT_COLUMNS = ("user_is_right", "claim", "opposite", "direction", "about")  # of heldout_data.json beside its pairs, for the measures of 2 and 4
KNOWN_COLUMNS = {*PROMPT_COLUMNS, *sum(ANSWER_COLUMNS.values(), ()), *SYSTEM_COLUMNS, "history", *HELDOUT_COLUMNS}
MISSING = {"prompt": "what the user says", "chosen": "the better of two answers", "rejected": "the worse of two answers"}

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user"}
ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant")
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{.*["'](role|from)["']\s*:\s*["'](system|user|human|assistant|gpt)["']""", re.DOTALL)

# What of an item or a message would change what is learned, and has no place here: what to do about it.
NO_TOOLS = 'is not trained on here; write what the model must know of it into "system", and take it out'
NO_LABEL = "is for single answers with a label, and here each prompt has a chosen and a rejected one; take it out"
ONLY_TEXT = "is not read here, where text alone is trained on; take it out, or the whole item"
REFUSED = dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), NO_TOOLS)
REFUSED |= dict.fromkeys(("completion", "label", "labels", "kto_tag"), NO_LABEL)
REFUSED |= dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), ONLY_TEXT)
REFUSED |= dict.fromkeys(("context", "documents"), "is not read here; write it into what the user says, and take it out")
REFUSED |= {
    "margin": "has no part in the loss; take it out",
    "chat_template_kwargs": "is not given to the chat template here; take it out",
    "reasoning_content": "is not read here; write it into the message's content, or take it out",
}


def as_pair(row: object) -> dict[str, list[dict]]:
    """Return an item as {"prompt", "chosen", "rejected"}, lists of chat messages, or raise ValueError with what is wrong with it and the mend."""
    if not isinstance(row, dict):
        raise ValueError(f"must be an object with prompt, chosen and rejected, and is {json.dumps(row)[:40]}")
    if isinstance(row.get("input"), dict):
        row = row | {"input": None} | row["input"]
    columns, prompts = find_columns(row)
    for name in REFUSED:
        if not is_empty(row.get(name)) and row[name] not in ("[]", "{}", "null"):
            raise ValueError(f'"{name}" {REFUSED[name]}')
    chats = {key: as_chat(row[name], name, "assistant") for key, name in columns.items()}
    for key, name in columns.items():
        if chats[key][-1]["role"] != "assistant":
            raise malformed(name, "assistant")
    answers = [chat[-1] for chat in chats.values()]
    if prompts == ["instruction", "input"] and isinstance(row["instruction"], str) and isinstance(row["input"], str):
        prompts, row = ["instruction"], row | {"instruction": f"{row['instruction']}\n{row['input']}"}  # as LLaMA-Factory joins them
    before = {columns[key]: chat[:-1] for key, chat in chats.items() if chat[1:]}  # what stands before the answer in a whole chat
    said = {name: as_chat(row[name], name, "user") for name in prompts}
    said = {name: chat[:-1] if chat[1:] and chat[-1] in answers else chat for name, chat in said.items()}  # some sets have the chosen chat again
    prompt = join(row, before, said)
    if answers[0] == answers[1]:
        raise ValueError("chosen and rejected are the same text; make them differ")
    return {"prompt": prompt, "chosen": chats["chosen"][-1:], "rejected": chats["rejected"][-1:]}


def find_columns(row: dict) -> tuple[dict[str, str], list[str]]:
    """Return the columns of the answers, {"chosen": name, "rejected": name}, and those with what the user says, none if the answers have it."""
    columns = {key: name for key, names in ANSWER_COLUMNS.items() for name in names[::-1] if name in row}
    if "rejected" in columns and "messages" in row:
        columns = {"chosen": "messages"} | columns
    present = [name for name in PROMPT_COLUMNS if name in row and name not in columns.values()]
    prompts = [name for name in present if not is_empty(row[name])]
    whole = any(not isinstance(row[name], str) or messages_in(row[name], name) for name in columns.values())
    for key in MISSING:
        if not (present or whole if key == "prompt" else key in columns):
            raise missing(key, row)
    return columns, prompts if prompts or whole else present[:1]


def join(row: dict, before: dict[str, list[dict]], said: dict[str, list[dict]]) -> list[dict]:
    """Return what stands before the answers of an item, or raise ValueError if its columns do not agree about it.

    before holds what whole chats have before their answers, said what the prompt's columns have, each by the column's name.
    """
    if not before and not said:
        raise missing("prompt", row)
    system = [as_chat(row[name], name, "system")[-1] for name in SYSTEM_COLUMNS if not is_empty(row.get(name))]
    system += [chat[0] for chat in (before | said).values() if chat[0]["role"] == "system"]
    if any(message != system[0] or message["role"] != "system" for message in system):
        raise ValueError("has more than one message of the system; keep one of them")
    history = as_history(row.get("history"))
    before = {name: without_system(chat) for name, chat in before.items()}
    said = {name: history + without_system(chat) for name, chat in said.items()}
    for name, chat in (before | said).items():
        if not chat or chat[-1]["role"] != "user":
            raise malformed(name, "user") if name in said else ValueError(f'"{name}" must end with a message of the user and one answer to it')
    prompt = max((before or said).values(), key=len)
    first = next(iter(before or said))
    for name, chat in said.items():
        if not (same(chat, prompt) or len(chat) == 1 and any(same(chat, [message]) for message in prompt)):  # some sets repeat one message of several
            if before:
                raise ValueError(f'"{first}" must be one answer, or begin with the messages of "{name}"; make them agree, or take "{name}" out')
            raise ValueError(f'has "{first}" and "{name}", which differ; write all that the user says into one, and take the other out')
    if not all(same(chat, prompt) for chat in before.values()):
        raise ValueError('"chosen" and "rejected" must be the same up to the answer; make them so, or take the item out')
    if not same(history, prompt[: len(history)]):
        raise ValueError(f'"history" is not what "{first}" begins with; take it out')
    return system[:1] + prompt


def as_chat(value: object, name: str, role: str) -> list[dict]:
    """Return a column as a list of {"role", "content"}. role is whose words a bare text is."""
    if isinstance(value, str):
        value = messages_in(value, name) or (as_conversation(value) if role == "user" else {"role": role, "content": value})
    messages, chat = [value] if isinstance(value, dict) else value, []
    if not messages or not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise malformed(name, role)
    for message in messages:
        for key in REFUSED:
            if not is_empty(message.get(key)):
                raise ValueError(f'"{key}" in "{name}" {REFUSED[key]}')
        who, text = message.get("role") or message.get("from"), message.get("content") or message.get("value")
        if who in ("tool", "function", "function_call", "observation", "ipython"):
            raise ValueError(f'"{name}" holds a message of a {who}, and only system, user and assistant are trained on; take the item out')
        if isinstance(text, list) and all(isinstance(part, dict) for part in text):  # [{"type": "text", "text"}], as for models that see
            if other := [part.get("type") for part in text if part.get("type") != "text"]:
                raise ValueError(f'"{name}" holds a part of type {other[0]}, and text alone is trained on; take the item out')
            text = "".join(str(part.get("text") or "") for part in text)
        if not isinstance(who, str) or who.lower() not in ROLES or not isinstance(text, str) or not text.strip() or not is_unicode(text):
            raise malformed(name, role)
        chat.append({"role": ROLES[who.lower()], "content": text})
    return chat


def messages_in(text: str, name: str) -> list[dict] | None:
    """Return the messages that a text spells out, as JSON (a CSV file has no other way) or in the form of HH-RLHF; None if it is just a text."""
    if MESSAGES_AS_TEXT.match(text):
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError(f'"{name}" holds messages as a text that is not JSON; write it as JSON, or the whole file as JSON Lines') from None
    if not re.match(r"\s*Human:.*\bAssistant:", text, re.DOTALL):
        return None
    _, *turns = TURN.split(text)
    chat = [{"role": "user" if who == "Human" else "assistant", "content": words.strip()} for who, words in zip(turns[::2], turns[1::2])]
    if not chat[1:]:
        raise ValueError(f'"{name}" holds turns "Human:" and "Assistant:"; let each begin after an empty line, or write the last text alone')
    return chat if chat[-1]["content"] else chat[:-1]  # a prompt may end with "Assistant:"


def as_history(value: object) -> list[dict]:
    """Return the column history, a list of [what the user said, the answer] or of messages, as chat messages."""
    if is_empty(value):
        return []
    try:
        value = json.loads(value) if isinstance(value, str) else value
        if isinstance(value[0], list):
            value = [{"role": role, "content": text} for turn in value for role, text in zip(("user", "assistant"), turn, strict=True)]
        chat = as_chat(value, "history", "assistant")
    except (ValueError, TypeError, KeyError, IndexError):
        chat = []
    if not chat or chat[-1]["role"] != "assistant":
        raise ValueError('"history" must be a list of [what the user said, the answer]; write it so, or take it out')
    return chat


def without_system(chat: list[dict]) -> list[dict]:
    return chat[1:] if chat[0]["role"] == "system" else chat


def same(chat: list[dict], other: list[dict]) -> bool:
    """Return whether two chats are the same but for spaces at the ends of messages."""
    one, two = ([(message["role"], message["content"].strip()) for message in messages] for messages in (chat, other))
    return one == two


def is_empty(value: object) -> bool:
    """Return whether a column says nothing; a table has all columns in all rows, and NaN is pandas' word for nothing."""
    return value is None or value != value or value in ([], {}) or isinstance(value, str) and not value.strip()


def missing(key: str, row: dict) -> ValueError:
    left = " and ".join(f'"{name}"' for name in REFUSED if name in row and name != "completion")
    return ValueError(
        f'has no "{key}", only {json.dumps(list(row))[:80]}; rename or add it, {MISSING[key]}{f", and take {left} out" if left else ""}'
    )


def malformed(name: str, role: str) -> ValueError:
    return ValueError(f'"{name}" must be a text that is not empty, or a list of such messages whose last is of the {role}')
