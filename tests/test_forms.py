"""The forms of preference data: each becomes the same chat messages, and what a refusal says to do can be trained on."""

import copy
import csv
import io
import json
import subprocess
from pathlib import Path

import pytest

from test_faults import checkpoint_whole, stop_when
from toolkit import pairs, paths

ASKED, BETTER, WORSE = "Is the sky green?", "It is blue.", "It is green."
GOOD = {"prompt": ASKED, "chosen": BETTER, "rejected": WORSE}
ANSWERS = {"chosen": BETTER, "rejected": WORSE}
SECOND = {"prompt": "Is grass blue?", "chosen": "It is green.", "rejected": "It is blue."}


def chat(*texts: str, system: str | None = None) -> list[dict]:
    """Return texts of user and assistant in turn as messages."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def sharegpt(*texts: str, system: str | None = None) -> list[dict]:
    """Return texts of human and gpt in turn as messages of ShareGPT."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[message["role"]], "value": message["content"]} for message in chat(*texts, system=system)]


def answer(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


PLAIN, BRIEF = chat(ASKED), chat(ASKED, system="Be brief.")
LONG = chat("Hello", "Hello.", ASKED)
CHATS = {"chosen": chat(ASKED, BETTER), "rejected": chat(ASKED, WORSE)}
HH = "\n\nHuman: Hello\n\nAssistant: Hello.\n\nHuman: Is the sky green?\n\nAssistant:"

# name: (item, the prompt it becomes); the answers are always the same
FORMS = {
    "texts": (GOOD, PLAIN),
    "TRL: messages": ({"prompt": PLAIN, "chosen": answer(BETTER), "rejected": answer(WORSE)}, PLAIN),
    "TRL: implicit prompt": (CHATS, PLAIN),
    "TRL: implicit prompt, several turns": ({"chosen": LONG + answer(BETTER), "rejected": LONG + answer(WORSE)}, LONG),
    "TRL: implicit prompt with a system": ({"chosen": BRIEF + answer(BETTER), "rejected": BRIEF + answer(WORSE)}, BRIEF),
    "TRL: parts of messages": ({"prompt": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}], **ANSWERS}, PLAIN),
    "UltraFeedback": (CHATS | {"prompt": ASKED, "prompt_id": "a", "messages": CHATS["chosen"], "score_chosen": 8.0, "score_rejected": 2.0}, PLAIN),
    "its prompt with a space more": (CHATS | {"prompt": ASKED + "\n"}, PLAIN),
    "a prompt beside chats with a system": ({"prompt": ASKED, "chosen": BRIEF + answer(BETTER), "rejected": BRIEF + answer(WORSE)}, BRIEF),
    "a prompt that repeats one message": ({"prompt": "Hello", "chosen": LONG + answer(BETTER), "rejected": LONG + answer(WORSE)}, LONG),
    "an empty prompt beside whole chats": (CHATS | {"prompt": None, "question": ""}, PLAIN),
    "one whole chat": ({"chosen": chat(ASKED, BETTER), "rejected": WORSE}, PLAIN),
    "messages beside texts": (GOOD | {"messages": chat(ASKED, BETTER)}, PLAIN),
    "HH-RLHF": ({"chosen": f"{HH} {BETTER}", "rejected": f"{HH} {WORSE}"}, LONG),
    "HH-RLHF with a prompt": ({"prompt": HH, **ANSWERS}, LONG),
    "HH-RLHF, a turn of two paragraphs": (
        {"chosen": f"Human: Hello\n\nHuman beings ask.\nHuman: {ASKED}\n\nAssistant: {BETTER}", "rejected": WORSE},
        chat(f"Hello\n\nHuman beings ask.\nHuman: {ASKED}"),
    ),
    "no turns": (GOOD | {"prompt": "Human: who is the Assistant?"}, chat("Human: who is the Assistant?")),
    "Orca pairs": ({"system": "Be brief.", "question": ASKED, **ANSWERS}, BRIEF),
    "Orca pairs of distilabel": ({"system": "Be brief.", "input": ASKED, **ANSWERS, "rating": [9, 8], "order": None}, BRIEF),
    "an empty system": (GOOD | {"system": "", "history": [], "tools": "[]", "images": None, "label": None}, PLAIN),
    "system_prompt": (GOOD | {"system_prompt": "Be brief."}, BRIEF),
    "a system twice": (GOOD | {"system": "Be brief.", "prompt": BRIEF}, BRIEF),
    "a developer's message": (GOOD | {"prompt": [{"role": "developer", "content": "Be brief."}, *PLAIN]}, BRIEF),
    "system and whole chats": (CHATS | {"system": "Be brief."}, BRIEF),
    "Alpaca": ({"instruction": "Answer this:", "input": ASKED, **ANSWERS}, chat(f"Answer this:\n{ASKED}")),
    "Alpaca without input": ({"instruction": ASKED, "input": "", **ANSWERS}, PLAIN),
    "Alpaca with all": ({"instruction": ASKED, "system": "Be brief.", "history": [["Hello", "Hello."]], **ANSWERS}, chat("Hello", "Hello.", ASKED, system="Be brief.")),
    "history of messages": (GOOD | {"history": chat("Hello", "Hello.")}, LONG),
    "history as JSON": (GOOD | {"history": '[["Hello", "Hello."]]'}, LONG),
    "history and whole chats": ({"history": [["Hello", "Hello."]], "chosen": LONG + answer(BETTER), "rejected": LONG + answer(WORSE)}, LONG),
    "ShareGPT": (
        {"conversations": sharegpt("Hello", "Hello.", ASKED, system="Be brief."), "chosen": {"from": "gpt", "value": BETTER}, "rejected": {"from": "gpt", "value": WORSE}},
        chat("Hello", "Hello.", ASKED, system="Be brief."),
    ),
    "ShareGPT with columns": ({"conversations": sharegpt(ASKED), "system": "Be brief.", "tools": "", **ANSWERS}, BRIEF),
    "ShareGPT, whole chats": ({"chosen": sharegpt(ASKED, BETTER), "rejected": sharegpt(ASKED, WORSE)}, PLAIN),
    "ShareGPT, other names": ({"conversations": [{"from": "User", "value": ASKED}], "chosen": [{"from": "chatgpt", "value": BETTER}], "rejected": WORSE}, PLAIN),
    "ShareGPT, roles": ({"conversations": PLAIN, "chosen": answer(BETTER)[0], "rejected": answer(WORSE)[0]}, PLAIN),
    "ms-swift": ({"messages": LONG + answer(BETTER), "rejected_response": WORSE}, LONG),
    "OpenAI": ({"input": {"messages": BRIEF, "tools": [], "parallel_tool_calls": True}, "preferred_output": answer(BETTER), "non_preferred_output": answer(WORSE)}, BRIEF),
    "messages as JSON, as in a CSV file": ({"prompt": json.dumps(BRIEF), "chosen": json.dumps(answer(BETTER)), "rejected": WORSE}, BRIEF),
    "JSON that is no messages": (GOOD | {"prompt": '[{"value": 1, "content": "a"}]'}, chat('[{"value": 1, "content": "a"}]')),
    "columns that a table has everywhere": ({"prompt": [PLAIN[0] | {"name": None, "tool_calls": None, "from": None}], **ANSWERS}, PLAIN),
    "the same question twice": (GOOD | {"question": ASKED}, PLAIN),
}  # fmt: skip

TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
CALL = {"role": "assistant", "content": "Let me look.", "tool_calls": [TOOL]}
# name: (item, what the line says of it, the item with the line followed)
REFUSED = {
    "tools": (GOOD | {"tools": [TOOL]}, '"tools" is not trained on here; write what the model must know of it into "system", and take it out', GOOD | {"system": "You can look."}),
    "tools as JSON": (GOOD | {"tools": json.dumps([TOOL])}, '"tools" is not trained on here', GOOD | {"tools": "[]"}),
    "tools of OpenAI": ({"input": {"messages": PLAIN, "tools": [TOOL]}, "preferred_output": BETTER, "non_preferred_output": WORSE}, '"tools" is not trained on here', {"input": {"messages": PLAIN}, "preferred_output": BETTER, "non_preferred_output": WORSE}),
    "a call": (GOOD | {"prompt": [*PLAIN, CALL, *PLAIN]}, '"tool_calls" in "prompt" is not trained on here', GOOD | {"prompt": [*PLAIN, *answer("Let me look."), *PLAIN]}),
    "a tool's answer": (GOOD | {"prompt": [*PLAIN, {"role": "tool", "content": "blue"}]}, '"prompt" holds a message of a tool, and only system, user and assistant are trained on; take the item out', SECOND),
    "an observation": ({"conversations": [*sharegpt(ASKED), {"from": "observation", "value": "blue"}], **ANSWERS}, '"conversations" holds a message of a observation', SECOND),
    "images": (GOOD | {"images": ["sky.png"]}, '"images" is not read here, where text alone is trained on; take it out, or the whole item', GOOD),
    "an image in a message": (GOOD | {"prompt": [{"role": "user", "content": [{"type": "text", "text": ASKED}, {"type": "image"}]}]}, '"prompt" holds a part of type image, and text alone is trained on; take the item out', SECOND),
    "label": (GOOD | {"label": False}, '"label" is for single answers with a label, and here each prompt has a chosen and a rejected one; take it out', GOOD),
    "completion": (GOOD | {"completion": BETTER}, '"completion" is for single answers', GOOD),
    "KTO": ({"prompt": ASKED, "completion": BETTER, "label": True}, 'has no "chosen", only ["prompt", "completion", "label"]; rename or add it, the better of two answers, and take "label" out', GOOD),
    "margin": (GOOD | {"margin": 0.5}, '"margin" has no part in the loss; take it out', GOOD),
    "chat_template_kwargs": (GOOD | {"chat_template_kwargs": {"enable_thinking": False}}, '"chat_template_kwargs" is not given to the chat template here; take it out', GOOD),
    "reasoning": (GOOD | {"chosen": [answer(BETTER)[0] | {"reasoning_content": "Hm."}]}, '"reasoning_content" in "chosen" is not read here; write it into the message\'s content', GOOD | {"chosen": "Hm. " + BETTER}),
    "context": (GOOD | {"context": "The sky is blue."}, '"context" is not read here; write it into what the user says, and take it out', GOOD | {"prompt": "The sky is blue. " + ASKED}),
    "a history that is a text": (GOOD | {"history": "Hello"}, '"history" must be a list of [what the user said, the answer]; write it so, or take it out', GOOD | {"history": [["Hello", "Hello."]]}),
    "a history of half a turn": (GOOD | {"history": [["Hello"]]}, '"history" must be a list of', GOOD),
    "a history that ends with the user": (GOOD | {"history": chat("Hello")}, '"history" must be a list of', GOOD | {"history": chat("Hello", "Hello.")}),
    "another history": ({"history": [["Bye", "Bye."]], "chosen": LONG + answer(BETTER), "rejected": LONG + answer(WORSE)}, '"history" is not what "chosen" begins with; take it out', {"chosen": LONG + answer(BETTER), "rejected": LONG + answer(WORSE)}),
    "two systems": (GOOD | {"system": "Be long.", "prompt": BRIEF}, "has more than one message of the system; keep one of them", GOOD | {"prompt": BRIEF}),
    "a system that is none": (GOOD | {"system": 7}, '"system" must be a text that is not empty', GOOD | {"system": "7"}),
    "answers alone": (ANSWERS, 'has no "prompt", only ["chosen", "rejected"]; rename or add it, what the user says', GOOD),
    "answers alone, as messages": ({"chosen": answer(BETTER), "rejected": answer(WORSE)}, 'has no "prompt", only ["chosen", "rejected"]; rename or add it', {"prompt": ASKED, "chosen": answer(BETTER), "rejected": answer(WORSE)}),
    "Stanford preferences": ({"history": ASKED, "human_ref_A": BETTER, "human_ref_B": WORSE, "labels": 1}, 'has no "prompt", only ["history", "human_ref_A", "human_ref_B", "labels"]; rename or add it, what the user says, and take "labels" out', GOOD),
    "no rejected": ({"messages": chat(ASKED, BETTER)}, 'has no "chosen", only ["messages"]; rename or add it, the better of two answers', {"messages": PLAIN, **ANSWERS}),
    "HH-RLHF in single lines": ({"chosen": f"Human: {ASKED}\nAssistant: {BETTER}", "rejected": f"Human: {ASKED}\nAssistant: {WORSE}"}, '"chosen" holds turns "Human:" and "Assistant:"; let each begin after an empty line, or write the last text alone', {"chosen": f"Human: {ASKED}\n\nAssistant: {BETTER}", "rejected": f"Human: {ASKED}\n\nAssistant: {WORSE}"}),
    "chats that part early": ({"chosen": LONG + answer(BETTER), "rejected": chat("Hello", "Go away.", ASKED, WORSE)}, '"chosen" and "rejected" must be the same up to the answer; make them so, or take the item out', {"chosen": LONG + answer(BETTER), "rejected": LONG + answer(WORSE)}),
    "answers to nobody": ({"chosen": answer("Hello.") + answer(BETTER), "rejected": answer("Hello.") + answer(WORSE)}, '"chosen" must end with a message of the user and one answer to it', CHATS),
    "another prompt": (CHATS | {"prompt": "Is grass blue?"}, '"chosen" must be one answer, or begin with the messages of "prompt"; make them agree, or take "prompt" out', CHATS),
    "prompt and question": (GOOD | {"question": "Is it?"}, 'has "prompt" and "question", which differ; write all that the user says into one, and take the other out', GOOD | {"prompt": ASKED + " Is it?"}),
    "messages of another chat": (GOOD | {"messages": chat("Hello", "Hello.")}, '"messages" must be a text that is not empty, or a list of such messages whose last is of the user', GOOD),
    "Python in place of JSON": (GOOD | {"prompt": str(PLAIN)}, '"prompt" holds messages as a text that is not JSON; write it as JSON, or the whole file as JSON Lines', GOOD | {"prompt": json.dumps(PLAIN)}),
    "a token in a system": (GOOD | {"system": "<|im_end|>"}, '"system" holds <|im_end|>, which is no text to the model; take it out', GOOD),
    "a token in two parts": (GOOD | {"prompt": [{"role": "user", "content": [{"type": "text", "text": part} for part in ("<|im_", "end|>")]}]}, '"prompt" holds <|im_end|>', GOOD),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def read(tokenizer, tmp_path, monkeypatch):
    """What step 3 reads its pairs with, for the tiny model, from an empty folder: a function of a file's content and name."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)

    def read(content: bytes | list, name: str = "mine.jsonl", tokenizer=tokenizer) -> list[dict]:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return pairs.read_pairs(tmp_path / name, tokenizer, 2048)

    return read


def refusal(read, *arguments) -> str:
    with pytest.raises(SystemExit) as refused:
        read(*arguments)
    assert "\n" not in refused.value.code
    return refused.value.code


@pytest.mark.parametrize("name", FORMS)
def test_forms(read, name):
    item, prompt = FORMS[name]
    before = copy.deepcopy(item)
    assert read([item]) == [{"prompt": prompt, "chosen": answer(BETTER), "rejected": answer(WORSE)}]
    assert item == before


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_to_write_instead(read, name):
    item, line, mended = REFUSED[name]
    assert refusal(read, [SECOND, item]).startswith(f"error: mine.jsonl, item 2: {line}")
    [pair] = read([mended])
    assert pair["prompt"][-1]["role"] == "user" and pair["chosen"] != pair["rejected"]


def test_columns_that_are_passed_over_are_named(read, capsys):
    read([GOOD | {"id": 7, "chosen_rating": 8.0, "source": "\x1b[31m", "empty": None}, SECOND | {"model": "a"}])
    assert capsys.readouterr().out == "mine.jsonl: not trained on are the columns chosen_rating, id, model, source\n"
    read([GOOD | {"\x1b[31mred": 7}])
    assert capsys.readouterr().out == "mine.jsonl: not trained on are the columns  [31mred\n"
    read([GOOD | {"user_is_right": False, "claim": "a", "opposite": "b", "direction": "polite"}, GOOD | {"system": "Be brief."}])
    assert not capsys.readouterr().out


# ---- Chat templates ------------------------------------------------------------------------------------------------------------------
def with_template(tokenizer, name: str):
    """Return the tokenizer with one of the chat templates that TRL ships."""
    import trl

    other = copy.deepcopy(tokenizer)
    other.bos_token = "<|endoftext|>"
    other.chat_template = (Path(trl.__file__).parent / "chat_templates" / name).read_text(encoding="utf-8")
    return other


SAID_FIRST = "write what the system says into the user's first message"
TEMPLATES = {
    "a system that it refuses": ("gemma.jinja", GOOD | {"system": "Be brief."}, f"the chat template of this model refuses it (System role not supported); {SAID_FIRST}", GOOD | {"prompt": f"Be brief. {ASKED}"}),
    "turns out of order": ("gemma.jinja", GOOD | {"prompt": PLAIN + PLAIN}, "the chat template of this model refuses it (Conversation roles must alternate user/assistant/user/assistant/...); let user and assistant take turns, the user first", GOOD | {"prompt": LONG}),
    "thoughts that it drops": ("deepseek_r1_distill.jinja", GOOD | {"chosen": f"<think>Hm.</think>{BETTER}"}, 'the chat template of this model leaves out a part of "chosen", as a rule <think>...</think>; take it out', GOOD),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_the_chat_template_refuses_or_drops(read, tokenizer, name):
    template, item, line, mended = TEMPLATES[name]
    other = with_template(tokenizer, template)
    assert refusal(read, [SECOND, item], "mine.jsonl", other) == f"error: mine.jsonl, item 2: {line}"
    assert read([mended], "mine.jsonl", other)


def test_a_template_that_drops_the_system_in_silence(read, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
    said = refusal(read, [GOOD | {"system": "Be brief."}], "mine.jsonl", other)
    assert said == f"error: mine.jsonl, item 1: the chat template of this model leaves out what the system says; {SAID_FIRST}"


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "qwen3_5_think", "llama3", "gemma3", "phi3", "deepseekv3", "gptoss", "lfm2", "cohere", "glm4moe"]
)
def test_templates_that_have_it_all(read, tokenizer, name):
    """Also where they trim and move what is said, as those of Gemma do, or drop the thoughts of earlier answers."""
    item = {
        "history": [[" Hello\n\n  there ", "<think>Hm.</think>Hello."]],
        "prompt": f"{ASKED} <b>&\n",
        "chosen": f"{BETTER}\n\n    x = 1\n",
        "rejected": WORSE,
    }
    other = with_template(tokenizer, f"{name}.jinja")
    assert len(read([item, item | {"system": "Be brief.\n"}], "mine.jsonl", other)) == 2


# ---- Files ---------------------------------------------------------------------------------------------------------------------------
ROWS = [
    GOOD | {"system": "Be brief.", "score": "5"},
    {"prompt": 'Is "NA"\nnull, or not;\tno?', "chosen": "None", "rejected": "5\u2028\u00fc \u4f60", "system": "", "score": ""},
]


def table(separator: str, rows=ROWS, **options) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=separator, **options)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def parquet(rows: list[dict]) -> bytes:
    from datasets import Dataset

    file = io.BytesIO()
    Dataset.from_list(rows).to_parquet(file)
    return file.getvalue()


LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
FILES = {
    "a.json": json.dumps(ROWS).encode("utf-16"),
    "lines.json": LINES.encode(),
    "a.jsonl": LINES.encode() + b"\n",
    "blank.jsonl": ("\n\n" + LINES.replace("\n", "\r\n\r\n \r\n") + "\n\n").encode("utf-8-sig"),
    "two files in one.ndjson": "\n".join("\ufeff" + line for line in LINES.split("\n")).encode(),
    "utf-16.jsonl": LINES.encode("utf-16"),
    "comma.csv": table(",").encode(),
    "semicolon, as Excel writes it.csv": table(";").encode("utf-8-sig"),
    "quoted.CSV": table(",", quoting=csv.QUOTE_ALL).encode("utf-16"),
    "tab.tsv": table("\t").encode(),
    "a.parquet": parquet(ROWS),
}


@pytest.mark.parametrize("name", FILES)
def test_files(read, name, capsys):
    """The second item holds what tables take for something else: NA, null, None, 5, quotes, separators and ends of lines."""
    one, two = read(FILES[name], name)
    assert one == {"prompt": BRIEF, "chosen": answer(BETTER), "rejected": answer(WORSE)}
    assert two == {"prompt": chat(ROWS[1]["prompt"]), "chosen": answer("None"), "rejected": answer(ROWS[1]["rejected"])}
    assert capsys.readouterr().out == f"{name}: not trained on are the columns score\n"


def test_parquet_of_messages_as_on_the_hub(read):
    """A column has one type there: every message has the keys of all others."""
    rows = [
        CHATS | {"images": [], "tools": None},
        {"chosen": sharegpt(ASKED, BETTER), "rejected": sharegpt(ASKED, WORSE), "images": [], "tools": None},
    ]
    rows = [
        {key: [{"role": None, "content": None, "from": None, "value": None} | part for part in row[key]] if key in CHATS else row[key] for key in row}
        for row in rows
    ]
    assert read(parquet(rows), "a.parquet") == 2 * [{"prompt": PLAIN, "chosen": answer(BETTER), "rejected": answer(WORSE)}]


BAD_FILES = {
    "a.jsonl": (json.dumps(GOOD).encode() + b"\n\n{'prompt': 'a'}\n", "is not valid JSON (line 3: "),
    "empty.jsonl": (b"", "is not valid JSON"),
    "empty.csv": (b"", "must be a list of"),
    "names only.csv": (b"prompt,chosen,rejected\n", "must be a list of"),
    "Latin-1.csv": (table(",").encode("utf-8").replace("\u00fc".encode(), b"\xfc"), "is not valid CSV ('utf-8' codec can't decode byte 0xfc in position 132: invalid start byte); save it as UTF-8"),
    "more.csv": (b"prompt,chosen,rejected\na,b,c\na,b,c,d\n", "is not valid CSV (item 2 has more fields than the first line has names; put texts into quotes); mend it"),
    "fewer.csv": (b"prompt,chosen,rejected\na,b\n", "is not valid CSV (item 1 has fewer fields than the first line has names; put texts into quotes)"),
    "twice.csv": (b"prompt,chosen,chosen\na,b,c\n", "is not valid CSV (the first line has a name twice)"),
    "open.csv": (b'prompt,chosen,rejected\na,b,"c\n', "is not valid CSV (line 2: unexpected end of data)"),
    "no names.csv": (b"a,b,c\nd,e,f\n", 'item 1: has no "prompt", only ["a", "b", "c"]; rename or add it'),
    "empty cell.csv": (b"prompt,chosen,rejected\na,,c\n", 'item 1: "chosen" must be a text that is not empty'),
    "cut.parquet": (parquet(ROWS)[:-20], "is not valid Parquet"),
    "a page.parquet": (b"<!DOCTYPE html>", "is not valid Parquet"),
    "a pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "is not valid Parquet"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(read, name):
    content, line = BAD_FILES[name]
    said = refusal(read, content, name)
    assert said.startswith(f"error: {name}") and line in said and "1-generate_data.py" not in said


# ---- Step 3 --------------------------------------------------------------------------------------------------------------------------
def test_step_3_trains_on_a_file_of_the_readers_own(tiny):
    """The system, in the form of Orca pairs, reaches the model; what was used stands in what is printed and in the log."""
    rows = [{"system": "Be brief.", "question": f"Is {i} a number?", "chosen": f"Yes, {i} is.", "rejected": "No."} for i in range(3)]
    (tiny.root / "mine.csv").write_text(table(",", rows), encoding="utf-8")
    own = tiny.output / "preference_data.json"
    own.unlink()
    printed = tiny.ok(3, "--data", "mine.csv", "--max-steps", "1")
    assert "3 pairs of mine.csv, 100 of control_data.json" in printed
    assert r"prompt:   '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIs 0 a number?<|im_end|>\n<|im_start|>assistant\n'" in printed
    log = json.loads((tiny.output / "dpo_results/training_log.json").read_text())
    assert set(log["data"]) == {"mine.csv", "control_data.json", "heldout_data.json"} and log["settings"]["data"] == "mine.csv"
    assert "3 pairs of mine.csv, 0 of control_data.json" in tiny.ok(3, "--data", str(tiny.root / "mine.csv"), "--max-steps", "1", "--no-controls")
    assert tiny.error(3) == "error: output/preference_data.json is missing; run 1-generate_data.py first"
    line = tiny.error(3, "--data", "mine.csv", "--no-controls", "--max-steps", "40", "--learning-rate", "1e30")
    assert line.startswith("error: training diverged at step ") and " on mine.csv item " in line


def test_every_form_and_every_mended_item_trains(tiny):
    """What the lines of refusal say, followed, goes through a step of the training: in one batch, each item with a question of its own."""
    items = [item for item, _ in FORMS.values()] + [mended for _, _, mended in REFUSED.values()]
    lines = [json.dumps(item).replace(ASKED, f"{ASKED} ({i})").replace("grass", f"grass ({i})") for i, item in enumerate(items)]
    (tiny.root / "mine.jsonl").write_text("\n".join(lines))
    printed = tiny.ok(3, "--data", "mine.jsonl", "--max-steps", "1", "--no-controls", "--batch-size", str(len(items)))
    assert f"{len(items)} pairs of mine.jsonl, 0 of control_data.json" in printed and len(items) > 70
    assert json.loads((tiny.output / "dpo_results/training_log.json").read_text())["history"][0]["loss/dpo"] == pytest.approx(0.6931, abs=1e-4)


def test_a_resumed_run_checks_the_file(tiny):
    rows = [{"prompt": f"Is {i} a number?", "chosen": f"Yes, {i} is.", "rejected": "No."} for i in range(80)]
    file = tiny.root / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    flags = ("--data", "mine.jsonl", "--no-controls")
    stop_when(tiny.start(3, *flags, pipe=subprocess.DEVNULL), lambda: checkpoint_whole(tiny, 20), 9)
    file.write_text("\n".join(map(json.dumps, rows[1:])))
    line = tiny.error(3, *flags, "--resume")
    assert line.startswith("error: the checkpoint is of a run with other settings or data: mine.jsonl (was ")
    file.write_text("\n".join(map(json.dumps, rows)))
    assert "data (was mine.jsonl, is None)" in tiny.error(3, "--no-controls", "--resume")
    assert "Done!" in tiny.ok(3, *flags, "--resume")


@pytest.mark.parametrize(
    "data, line",
    [
        ("Intel/orca_dpo_pairs", "there is no such file; of a data set of the hub, download a file first: hf download --repo-type dataset Intel/orca_dpo_pairs"),
        ("output", "there is no such file"),
        ("mine.jsonl.gz", "must end in .json, .jsonl, .ndjson, .csv, .tsv or .parquet; unpack it, or save it as one of these"),
        ("output/heldout_data.json", "has the name of a file that is read beside it; copy it to another name"),
    ],
)  # fmt: skip
def test_what_data_cannot_be(chapter, data, line):
    chapter.output.mkdir()
    for name in ("mine.jsonl.gz", "output/heldout_data.json"):
        (chapter.root / name).write_text("[]")
    assert chapter.error(3, "--data", data).startswith(f"error: --data {data}") and line in chapter.error(3, "--data", data)


def test_the_page_says_with_which_file(tiny):
    from toolkit.report import flags_of

    assert (
        flags_of({"data": "my pairs.csv", "seed": 0, "lora": True, "resume": True, "no_controls": False}) == "--data 'my pairs.csv' --seed 0 --lora"
    )
    assert flags_of({"data": None, "beta": 0.1}) == "--beta 0.1"
