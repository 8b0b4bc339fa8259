"""Tiny models of the families that people train, with their own chat templates: through steps 0 to 4, and the arithmetic against the plain one."""

import io
import json
import re
from functools import cache, partial
from types import SimpleNamespace

import pytest

from conftest import SCRIPTS, Chapter
from families import FAMILIES, SMOLLM2, make_model, make_tokenizer, shipped_template
from test_faults import use_few_claims
from test_measure import lively
from test_train import log, results, weights
from toolkit import chat
from toolkit.models import MAX_NEW_TOKENS, as_conversation, ask, load_model, log_likelihoods, opened

THROUGH = ["qwen2", "qwen3", "qwen3.5", "llama3", "gemma3", "smollm2", "smollm3", "phi3", "mistral", "lfm2", "falcon-h1", "granite-moe"]
THINKS = {"qwen3", "qwen3.5", "smollm3", "qwen3-moe"}
WINDOWS = {"gemma3", "mistral", "cohere2"}  # of 32 tokens
HYBRIDS = {"qwen3.5", "lfm2", "falcon-h1", "granite-h"}


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """A function that returns the folder of a tiny model of a family."""
    return cache(lambda family: make_model(family, tmp_path_factory.mktemp("families") / f"tiny-{family}"))


@pytest.fixture(scope="session")
def loaded(model_of):
    """A function that returns such a model and its tokenizer, as the steps load them."""
    return lambda family: load_model(model_of(family))


def few(chapter) -> None:
    """Leave 6 pairs, 2 controls, and 6 claims of the data of step 1."""
    for name, number in {"preference_data": 6, "control_data": 2}.items():
        path = chapter.output / f"{name}.json"
        rows = json.loads(path.read_text())
        path.write_text(json.dumps(rows[: number // 2] + rows[-number // 2 :]))
    use_few_claims(chapter, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_step_3_finds_the_layers_of_which_it_leaves_the_lowest_quarter_as_it_is(loaded, family):
    """By step 3's own line, which the source is searched for: the first list of modules is the layers, in their order."""
    import torch

    line = "layers = next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList))"
    assert line in SCRIPTS["3"].read_text(encoding="utf-8")
    model, _ = loaded(family)
    names = {"torch": torch, "model": model}
    exec(line, names)
    assert len(names["layers"]) == model.config.num_hidden_layers and names["layers"] is model.get_decoder().layers


@pytest.mark.slow
@pytest.mark.parametrize("family", THROUGH)
def test_a_family_goes_through_all_steps(tmp_path, model_of, family, monkeypatch, capsys):
    chapter = Chapter(tmp_path / "a chapter")
    out = chapter.ok(0, "--model", str(model_of(family)))
    assert ("this is turned off" in out) == (family in THINKS)
    assert len(out.splitlines()) == 4 + (family in THINKS)  # nothing else had to be set right
    chapter.ok(1)
    few(chapter)
    chapter.ok(2)
    out = chapter.ok(3, "--max-steps", "3", "--learning-rate", "1e-3")
    asked = re.search("prompt: +[\"'](.*)[\"']\n", out)[1]
    chosen = re.search("chosen: +[\"'](.*)[\"']\n", out)[1]
    assert asked.endswith("</think>\\n" if family == "smollm3" else "</think>\\n\\n") == (family in THINKS) and "think>" not in chosen
    history = log(chapter)["history"]
    assert history[0]["loss/dpo"] == pytest.approx(0.6931, abs=1e-4)
    assert history[0]["loss"] == pytest.approx(history[0]["loss/dpo"] + 0.05 * history[0]["loss/sft"], abs=1e-5)
    old, new = weights(chapter.output / "base_model"), weights(results(chapter) / "final_model")
    assert old.keys() == new.keys() and any((old[name] != new[name]).any() for name in old)
    chapter.ok(4)
    after = json.loads((chapter.output / "after.json").read_text())
    assert len(after["heldout"]) == 8 and all(item["side"] in ("sides", "opposes", "neither") for item in after["heldout"])

    chapter.ok(3, "--max-steps", "1", "--lora")
    adapter = results(chapter) / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == f"tiny-{family}"
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in adapter.iterdir())
    assert any((old[name] != tensor).any() for name, tensor in weights(results(chapter) / "final_model").items())

    monkeypatch.setattr(chat, "BASE_MODEL", chapter.output / "base_model")
    monkeypatch.setattr(chat, "FINAL_MODEL", results(chapter) / "final_model")
    monkeypatch.setattr("sys.stdin", io.StringIO("Is the sky green?\nAre you sure?\n\n"))
    chat.chat()
    said = capsys.readouterr().out
    assert said.count("Base model: ") == said.count("Tuned model: ") == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_whole_rows_without_padding(loaded, family):
    """As replies and as what goes on after words of the assistant, with the cache or without it; prompts longer than the window, and shorter."""
    import torch

    model, tokenizer = loaded(family)
    replies = ["No.", "The sky is blue, and it is so on most days, all over the world. In short:"]
    questions = ["Is it?", "Is the sky green, as all the people say who live in the land of Oz?"]
    texts = [[" Yes.", " It is green, I think."], [" It is blue.", " No."]]
    for chats in ([[{"role": "assistant", "content": reply}] for reply in replies], [as_conversation(question) for question in questions]):
        scores = log_likelihoods(model, tokenizer, chats, texts)
        for conversation, ends, own in zip(chats, texts, scores):
            start = tokenizer(opened(tokenizer, conversation), add_special_tokens=False)["input_ids"]
            for end, score in zip(ends, own):
                ids = tokenizer(end, add_special_tokens=False)["input_ids"]
                with torch.no_grad():
                    log_p = model(torch.tensor([start + ids]), use_cache=False).logits[0].log_softmax(-1)
                whole = sum(log_p[len(start) + i - 1, token].item() for i, token in enumerate(ids))
                assert score == pytest.approx(whole, abs=2e-4) and whole < -1


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_are_those_of_generate_one_by_one(loaded, family):
    """With layers of all kinds, prompts longer than the window, and shorter; at the second try some end early."""
    model, tokenizer = loaded(family)
    lively(model)
    chats = [as_conversation(question) for question in ("Is it?", "Is the sky green, as all the people say who live in the land of Oz?", "Why?")]
    for _ in range(2):
        alone = []
        for asked_alone in chats:
            ids = tokenizer.apply_chat_template(asked_alone, add_generation_prompt=True, return_dict=True, return_tensors="pt")
            alone.append(model.generate(**ids, max_new_tokens=MAX_NEW_TOKENS)[0, ids["input_ids"].shape[1] :].tolist())
        texts = tokenizer.batch_decode(alone, skip_special_tokens=True)
        assert [reply for reply, _ in ask(model, tokenizer, chats)] == [text.strip() for text in texts]
        model.generation_config.eos_token_id = [alone[1][min(5, len(alone[1]) - 1)]]


@pytest.mark.parametrize("family", FAMILIES)
def test_training_scores_are_trls_own(loaded, family):
    """Prompts are computed once where that gives TRL's numbers, and only there: not in hybrid models, nor beyond a window."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from toolkit.training import DPOWithSFTTrainer, answer_log_probs

    model, _ = loaded(family)
    add_fused_lm_head(model)
    torch.manual_seed(0)
    for length in (24, 64):
        ids = torch.randint(40, 200, (4, length))
        ids[2:, : length // 2] = ids[:2, : length // 2]
        ids[:, :5] = ids[0, :5]
        labels = ids.clone()
        labels[:, : length // 2] = -100
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        batch["attention_mask"][1, -4:] = 0
        labels[1, -4:] = -100
        score = DPOWithSFTTrainer.scorer(SimpleNamespace(model=model), model, batch)
        assert isinstance(score, partial) == (family not in HYBRIDS and (family not in WINDOWS or length <= 32))
        with torch.no_grad():
            theirs = model(**batch, fused_lm_head=True).log_probs
            logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits
            log_p = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * (labels[:, 1:] != -100)
            assert torch.allclose(theirs, log_p, atol=2e-5) and theirs.sum() < -100
            assert torch.allclose(score(**batch, fused_lm_head=True).log_probs, theirs, atol=2e-5)
            if family in WINDOWS and length > 32:  # the test would see it
                assert not torch.allclose(answer_log_probs(model, **batch).log_probs, theirs, atol=2e-5)


def continued(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, continue_final_message=True, tokenize=False)


@pytest.mark.parametrize("template", ["qwen2_5", "llama3", "lfm2", "phi3", SMOLLM2], ids=str.split)
def test_words_of_the_assistant_are_read_as_transformers_reads_them(template):
    tokenizer = make_tokenizer(template if " " in template else shipped_template(template), "<|im_end|>")
    for text in ("In short:", "Yes.\n\nIt is, and so on. In short:", "PLACE In short:"):
        words = [{"role": "assistant", "content": text}]
        assert opened(tokenizer, words) == continued(tokenizer, words)
        words = [*as_conversation("Is it?"), *words]
        assert opened(tokenizer, words) == continued(tokenizer, words)


@pytest.mark.parametrize("family", ["gemma3", "cohere2", "mistral", "qwen3.5"])
def test_a_template_that_wants_the_user_first_is_given_a_question(loaded, family):
    from jinja2 import TemplateError

    _, tokenizer = loaded(family)
    words = [{"role": "assistant", "content": "Yes. In short:"}]
    with pytest.raises(TemplateError):
        continued(tokenizer, words)
    assert opened(tokenizer, words) == continued(tokenizer, [*as_conversation("What do you think?"), *words])


def test_a_reply_with_a_thought_is_scored_whole(loaded):
    """Where the template drops it, and transformers therefore refuses to go on after it."""
    model, tokenizer = loaded("qwen3")
    words = [{"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes. In short:"}]
    with pytest.raises(ValueError, match="does not appear in the chat"):
        continued(tokenizer, words)
    assert opened(tokenizer, words).endswith("<|im_start|>assistant\n<think>\nHm.\n</think>\n\nYes. In short:")
    assert log_likelihoods(model, tokenizer, [words], [[" It is."]])[0][0] < -10
