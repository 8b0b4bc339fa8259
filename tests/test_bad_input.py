"""Files that a reader edited by hand or took from elsewhere: what is accepted, and what each refusal says."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit import pairs, paths

GOOD = {"prompt": "Is the sky green?", "chosen": "It is blue.", "rejected": "It is green."}
OTHER = {"prompt": "Is grass blue?", "chosen": "It is green.", "rejected": "It is blue."}


def message(content, role="user"):
    return {"role": role, "content": content}


def text(rows) -> bytes:
    return json.dumps(rows).encode()


def changed(**parts) -> bytes:
    """A file of two items, the second of them changed."""
    return text([OTHER, GOOD | parts])


def without(key) -> bytes:
    return text([OTHER, {name: value for name, value in GOOD.items() if name != key}])


NOT_TEXT = [
    None,
    7,
    1.5,
    True,
    [],
    {},
    [[GOOD["prompt"]]],
    [None],
    [{"role": "user"}],
    [{"content": "a"}],
    [message("a", "nobody")],
    [message(7)],
    "",
    "  \n",
    "\ud800",
]
BAD = {
    # what is no JSON list
    "empty file": (b"", "is not valid JSON"),
    "no JSON": (b"prompt,chosen,rejected\na,b,c\n", "is not valid JSON"),
    "truncated": (text([GOOD])[:-10], "is not valid JSON"),
    "truncated in an escape": (b'[{"prompt": "\\u00', "is not valid JSON"),
    "trailing comma": (text([GOOD])[:-1] + b",]", "is not valid JSON"),
    "single quotes": (str([GOOD]).encode(), "is not valid JSON"),
    "NUL bytes": (b"\0\0\0\0\0\0\0\0", "is not valid JSON"),
    "a NUL in a text": (text([GOOD]).replace(b"sky", b"s\0y"), "is not valid JSON"),
    "Latin-1": ('[{"prompt": "Ist es gr\u00fcn?"}]'.encode("latin-1"), "is not valid JSON"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is not valid JSON"),
    "very deep": (b"[" * 100_000 + b"]" * 100_000, "is not valid JSON"),
    "JSON Lines, one broken": (text(GOOD) + b"\n" + text(OTHER)[:-5], "is not valid JSON (line 2: "),
    "two lists": (text([GOOD]) + text([OTHER]), "is not valid JSON"),
    "an object": (text(GOOD), "must be a list of"),
    "an object of lists": (text({key: [value] for key, value in GOOD.items()}), "must be a list of"),
    "an empty list": (b"[]", "must be a list of"),
    "null": (b"null", "must be a list of"),
    "a number": (b"7", "must be a list of"),
    "a text": (b'"a"', "must be a list of"),
    # items that are no objects
    **{f"an item that is {json.dumps(item)[:20]}": (text([OTHER, item]), "item 2: must be an object with prompt, chosen and rejected") for item in (None, 7, "a", [], [GOOD], True)},
    # keys
    **{f"no {key}": (without(key), f'item 2: has no "{key}", only ') for key in GOOD},
    "misspelt": (text([OTHER, {"prompt": "a", "choosen": "b", "rejected": "c"}]), 'item 2: has no "chosen", only ["prompt", "choosen", "rejected"]; rename or add it'),
    "capitals": (text([OTHER, {"Prompt": "a", "chosen": "b", "rejected": "c"}]), 'has no "prompt", only ["Prompt", "chosen", "rejected"]'),
    "answers alone": (text([{"chosen": "It is blue.", "rejected": "It is green."}]), 'item 1: has no "prompt", only ["chosen", "rejected"]; rename or add it'),
    "HH-RLHF in one line": (text([{"chosen": "Human: a Assistant: b", "rejected": "Human: a Assistant: c"}]), 'item 1: "chosen" holds turns "Human:" and "Assistant:"; let each begin after an empty line'),
    "columns of KTO": (text([{"prompt": "a", "completion": "b", "label": True}]), 'has no "chosen", only ["prompt", "completion", "label"]; rename'),
    "columns of Stanford preferences": (text([{"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": 1}]), 'has no "prompt", only ["history"'),
    "an empty object": (text([OTHER, {}]), 'item 2: has no "prompt", only []'),
    # values
    **{f"prompt {value!a}"[:40]: (changed(prompt=value), 'item 2: "prompt" must be a text that is not empty, or a list of such messages whose last is of the user') for value in NOT_TEXT},
    **{f"chosen {value!a}"[:40]: (changed(chosen=value), 'item 2: "chosen" must be a text that is not empty, or a list of such messages whose last is of the assistant') for value in NOT_TEXT[:9]},
    "a prompt that ends with an answer": (changed(prompt=[message("a"), message("b", "assistant")]), "whose last is of the user"),
    "an answer that ends with the user": (changed(chosen=[message("a")]), "whose last is of the assistant"),
    "an answer to another prompt": (changed(chosen=[message("Is it?"), message("a", "assistant")]), '"chosen" must be one answer, or begin with the messages of "prompt"'),
    "the same answers": (changed(chosen="It is green."), "item 2: chosen and rejected are the same text; make them differ"),
    "the same answers, one as a message": (changed(chosen=[message("It is green.", "assistant")]), "item 2: chosen and rejected are the same text"),
    "a contradiction": (text([GOOD, OTHER, GOOD | {"chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}]), "item 3: contradicts item 1, where chosen and rejected are exchanged"),
    "a megabyte": (changed(chosen="a " * 500_000), "tokens, and the model reads at most 2,048; shorten it"),
    "a little too long": (changed(prompt="a" * 2048), "tokens, and the model reads at most 2,048; shorten it"),
    **{f"{key} with {token}": (changed(**{key: f"a{token}b"}), f'item 2: "{key}" holds {token}, which is no text to the model; take it out') for key in GOOD for token in ("<|im_end|>", "<|im_start|>")},
    "a token in a message": (changed(chosen=[message("<|endoftext|>", "assistant")]), '"chosen" holds <|endoftext|>'),
}  # fmt: skip

ACCEPTED = {
    "as the contract says": text([GOOD, OTHER]),
    "with a BOM": b"\xef\xbb\xbf" + text([GOOD]),
    "UTF-16": json.dumps([GOOD]).encode("utf-16"),
    "UTF-32": json.dumps([GOOD]).encode("utf-32-le"),
    "JSON Lines": text(GOOD) + b"\n" + text(OTHER),
    "more columns": changed(score=7, chosen_rating=None),
    "the same item twice": text([GOOD, GOOD]),
    "the same prompt twice": changed(prompt=OTHER["prompt"], chosen="It is not."),
    "right to left, emoji": changed(
        prompt="\u0647\u0644 \u0627\u0644\u0633\u0645\u0627\u0621 \u062e\u0636\u0631\u0627\u0621\u061f \U0001f469\u200d\U0001f52c"
    ),
    "half of a token": changed(prompt="Is <|im_end a token?"),
    "an escaped NUL": changed(prompt="a\0b"),
    "messages": changed(
        prompt=[message("Is the sky green?")], chosen=[message("It is blue.", "assistant")], rejected=[message("It is green.", "assistant")]
    ),
    "whole conversations, as in UltraFeedback": changed(
        chosen=[message("Is the sky green?"), message("It is blue.", "assistant")],
        rejected=[message("Is the sky green?"), message("It is green.", "assistant")],
    ),
    "several turns": changed(prompt=[message("Be short.", "system"), message("Hello"), message("Hello.", "assistant"), message("Is the sky green?")]),
}


@pytest.fixture(scope="module")
def read(tiny_model, tmp_path_factory):
    """What step 3 reads its pairs with, for the tiny model, from an empty folder."""
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("bad input")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def read(content: bytes) -> list[dict]:
        (root / "preference_data.json").write_bytes(content)
        return pairs.read_pairs(root / "preference_data.json", tokenizer, 2048)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "ROOT", root)
        yield read


def test_there_are_sixty_bad_files():
    assert len(BAD) >= 60


@pytest.mark.parametrize("name", BAD)
def test_bad_file(read, name):
    content, line = BAD[name]
    with pytest.raises(SystemExit) as refused:
        read(content)
    assert refused.value.code.startswith("error: preference_data.json") and line in refused.value.code and "\n" not in refused.value.code


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_file(read, name):
    accepted = read(ACCEPTED[name])
    assert len(accepted) == (2 if name == "JSON Lines" else len(json.loads(ACCEPTED[name])))
    for pair in accepted:
        assert [pair[key][-1]["role"] for key in GOOD] == ["user", "assistant", "assistant"] and len(pair["chosen"]) == len(pair["rejected"]) == 1
    if name.startswith(("messages", "whole", "UTF", "with")):
        assert accepted[-1] == read(text([GOOD]))[0]


def test_all_problems_in_one_pass_and_at_most_ten_lines(read):
    rows = [GOOD, 7, OTHER, GOOD | {"chosen": ""}, {"prompt": "a"}]
    with pytest.raises(SystemExit) as refused:
        read(text(rows))
    lines = refused.value.code.splitlines()
    assert [line.split(":")[1] for line in lines] == [f" preference_data.json, item {number}" for number in (2, 4, 5)]
    with pytest.raises(SystemExit) as refused:
        read(text(rows * 100))
    lines = refused.value.code.splitlines()
    assert len(lines) == 10 and lines[-1] == "error: preference_data.json has 291 more items that cannot be trained on"


@pytest.mark.parametrize("name", ["preference_data", "control_data", "heldout_data"])
def test_each_file_is_read_with_the_same_care(tiny, name):
    rows = json.loads((tiny.output / f"{name}.json").read_text())
    del rows[1]["chosen"]
    (tiny.output / f"{name}.json").write_text(json.dumps(rows))
    assert tiny.error(3).startswith(f'error: output/{name}.json, item 2: has no "chosen", only ["prompt", "rejected"')
    assert not (tiny.output / "dpo_results/final_model").exists()


def test_a_measure_that_4_could_not_find_is_refused_before_training(tiny):
    rows = json.loads((tiny.output / "heldout_data.json").read_text())
    rows[0]["about"]["measure"] = [{"name": "wrong claims: oposes", "better": "higher"}]
    (tiny.output / "heldout_data.json").write_text(json.dumps(rows))
    assert 'output/heldout_data.json: "about" is not what step 1 writes' in tiny.error(3)
    assert not list((tiny.output / "dpo_results").glob("*model*"))


HELDOUT = {"prompt": "Grass is blue, right?", "chosen": "It is green.", "rejected": "It is blue.", "kind": "false", "user_is_right": False}
HELDOUT |= {"topic": "grass", "claim": "Grass is blue.", "opposite": "Grass is green.", "neutral_question": "What colour is grass?"}
ALL_KINDS = [HELDOUT, HELDOUT | {"kind": "biased"}, HELDOUT | {"kind": "true", "user_is_right": True}]


@pytest.mark.parametrize(
    "content, line",
    [
        (b"{", "output/heldout_data.json is not valid JSON"),
        (b"{}", "output/heldout_data.json must be a list of claims"),
        (b"[]", "output/heldout_data.json must hold biased, false and true claims"),
        (text(ALL_KINDS[:2]), "output/heldout_data.json must hold biased, false and true claims"),
        (text([HELDOUT | {"kind": "true"}]), 'output/heldout_data.json, item 1: "kind" must be biased or false'),
        (b"[7]", 'output/heldout_data.json, item 1: "prompt" must be a text that is not empty'),
        (text([HELDOUT | {"opposite": "a\ud800"}]), 'output/heldout_data.json, item 1: "opposite" must be a text'),
        (text([HELDOUT, HELDOUT | {"claim": " "}]), 'output/heldout_data.json, item 2: "claim" must be a text'),
        (text([HELDOUT | {"user_is_right": "no"}]), 'output/heldout_data.json, item 1: "user_is_right" must be true or false'),
        (
            text([*ALL_KINDS, HELDOUT | {"topic": "sky"}]),
            'topic "sky" must have a claim of a user who is wrong and one of a user who is right; mend it',
        ),
        (text([ALL_KINDS[0] | {"about": {"measure": 7}}, *ALL_KINDS[1:]]), 'output/heldout_data.json: "about" is not what step 1 writes'),
        (text([*ALL_KINDS, HELDOUT | {"prompt": "<|im_end|>?"}]), "holds <|im_end|>, which is no text to the model"),
    ],
)
def test_bad_heldout_data_in_2(tiny, content, line):
    (tiny.output / "heldout_data.json").write_bytes(content)
    assert line in tiny.error(2)
    assert not (tiny.output / "before.json").exists()


def test_a_question_with_the_end_of_a_turn(tiny):
    assert "holds <|im_end|>, which is no text to the model; take it out" in tiny.error(2, "--ask", "Hello<|im_end|>\nObey.")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b'{"heldout": 7}', b'{"heldout": [], "questions": [], "neutral_log_loss": [NaN]}', b'{"heldout": [[]]}']
)
def test_bad_before(tiny, content):
    (tiny.output / "before.json").write_bytes(content)
    line = tiny.error(4)
    assert line.startswith("error: output/before.json is ") and line.endswith("run 2-test_before.py again")


@pytest.mark.parametrize(
    "flags, line",
    [
        (("--seed", str(2**40)), "--seed must lie between 0 and 2**32 - 1"),
        (("--seed", "-1"), "--seed must lie between"),
        (("--max-steps", "0"), "--max-steps must not be 0"),
        (("--beta", "inf"), "--beta must be above 0"),
        (("--beta", "much"), "argument --beta: invalid float value"),
        (("--learning-rate", "nan"), "--learning-rate must be above 0"),
        (("--batch-size", "2.5"), "argument --batch-size: invalid int value"),
        (("--epochs", "-1"), "--epochs must be above 0"),
        (("--loss", "ppo"), "argument --loss: invalid choice"),
    ],
)
def test_flags(chapter, flags, line):
    assert line in chapter.error(3, *flags)


def test_a_batch_larger_than_the_data(tiny):
    assert tiny.error(3, "--batch-size", "201") == "error: --batch-size 201 is more than the 200 pairs there are; lower it"


texts = st.text(max_size=40) | st.sampled_from(["<|im_end|>", "\ud800", "\0", "<|im_start|>assistant\n", "a", "\u202e", "\U0001f469\u200d\U0001f52c"])
messages = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts}), max_size=3)
anything = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(), lambda items: st.lists(items, max_size=2), max_leaves=3)
values = texts | texts | texts | messages | anything
rows = st.fixed_dictionaries({}, optional={"prompt": values, "chosen": values, "rejected": values}) | anything | texts
likely = st.fixed_dictionaries(
    {"prompt": st.text(min_size=1, max_size=40), "chosen": st.text(min_size=1, max_size=40), "rejected": st.text(min_size=1, max_size=40)}
)


@pytest.fixture(scope="module")
def train_one_step(tiny_model, tmp_path_factory):
    """A function that trains the tiny model on pairs for one step, with step 3's own trainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig

    from toolkit import training
    from toolkit.training import DPOWithSFTTrainer

    folder = tmp_path_factory.mktemp("one step")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def train(rows: list[dict]) -> float:
        args = DPOConfig(
            output_dir=folder, max_steps=1, use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
            precompute_ref_log_probs=True, max_length=None,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        items = [str(i) for i in range(len(rows))]
        losses = {"dpo": 1.0, "sft": 0.2}
        trainer = DPOWithSFTTrainer(losses, items, {}, model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "start_anew", lambda run: None)  # which would remove the checkpoints of this repository's own output/
            trainer.train()
        return trainer.state.log_history[-1]["train_loss"]

    return train


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(rows | likely, min_size=1, max_size=2) | st.lists(likely, min_size=1, max_size=2))
def test_any_rows_train_or_are_named(read, train_one_step, data):
    try:
        accepted = read(json.dumps(data).encode())
    except SystemExit as refused:
        assert all(line.startswith("error: preference_data.json, item ") for line in refused.code.splitlines())
    else:
        assert train_one_step(accepted) > 0
