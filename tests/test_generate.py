"""Step 1: the files it writes, and the claims that they are made from."""

import json
import re
import subprocess
import sys
import tomllib
from collections import Counter

import pytest
from conftest import ROOT, SCRIPTS

CLAIMS = tomllib.loads((ROOT / "code/chapter02_dpo/claims.toml").read_text())["topic"]
TRAIN, TEST = ([topic for topic in CLAIMS if topic["split"] == split] for split in ("train", "test"))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", text.lower()))


@pytest.fixture
def data(chapter) -> dict:
    chapter.printed = chapter.ok(1)
    return {name: json.loads((chapter.output / f"{name}_data.json").read_text(encoding="utf-8")) for name in ("preference", "heldout")}


def test_preference_data_is_what_the_contract_says(chapter, data):
    assert "Successfully generated 100 preference data items, saved to: output/preference_data.json" in chapter.printed.splitlines()
    assert re.search(r"[Ee]dit this script to change the preference direction.*more direct tone", chapter.printed)
    rows = data["preference"]
    assert len(rows) == 100
    for row in rows:
        assert list(row) == ["prompt", "chosen", "rejected"]
        assert all(isinstance(text, str) and text.strip() == text and text for text in row.values())
        assert row["chosen"] != row["rejected"]
    assert len({row["prompt"] for row in rows}) == len({row["chosen"] for row in rows}) == len({row["rejected"] for row in rows}) == 100


def test_same_seed_gives_the_same_files(chapter, tmp_path_factory):
    from conftest import Chapter

    other = Chapter(tmp_path_factory.mktemp("other"))
    chapter.ok(1), other.ok(1)
    files = sorted(path.name for path in chapter.output.iterdir())
    assert files == sorted(path.name for path in other.output.iterdir())
    for name in files:
        assert (chapter.output / name).read_bytes() == (other.output / name).read_bytes()


def test_works_from_another_folder_and_over_old_output(chapter, tmp_path):
    chapter.ok(1)
    old = (chapter.output / "preference_data.json").read_bytes()
    (chapter.output / "preference_data.json").write_text("old")
    chapter.ok(1, cwd=tmp_path)
    assert (chapter.output / "preference_data.json").read_bytes() == old


def test_uses_the_standard_library_only():
    code = "import runpy, sys; sys.argv = [sys.argv[1], '--help']\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass"
    subprocess.run([sys.executable, "-S", "-c", code, str(SCRIPTS["1"])], check=True, capture_output=True)


def test_heldout_claims_are_of_both_kinds_and_on_other_topics(data):
    heldout = data["heldout"]
    assert Counter(row["right"] for row in heldout) == {False: 60, True: 60}
    assert not {topic["name"] for topic in TRAIN} & {topic["name"] for topic in TEST}
    for row in heldout:
        nearest = max(data["preference"], key=lambda other: similarity(row["prompt"], other["prompt"]))
        assert similarity(row["prompt"], nearest["prompt"]) < 0.5, (row["prompt"], nearest["prompt"])


FRAME = words(
    "I think right you agree don't surely wouldn't say my neighbour says and so do we are aren't it's obvious that isn't it let's be honest "
    "everyone knows I've always said agreed honestly no the a an is of in to than as for with on at"
)


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the words of two claims, without those of the frame."""
    a, b = words(one) - FRAME, words(other) - FRAME
    return len(a & b) / len(a | b)


def test_no_near_duplicates(data):
    prompts = [row["prompt"] for row in data["preference"]]
    for i, one in enumerate(prompts):
        for other in prompts[:i]:
            assert similarity(one, other) < 0.5, (one, other)


def test_the_chapters_question_is_not_trained_on(data):
    for row in data["preference"]:
        assert not words("education educated school schools experience degree university") & words(" ".join(row.values())), row


def test_claims_come_from_many_fields_of_life():
    fields = Counter(topic["field"] for topic in TRAIN)
    assert len(fields) >= 20 and max(fields.values()) <= 0.1 * len(TRAIN)


def test_answers_have_like_lengths_and_varied_openings(data):
    chosen, rejected = ([len(row[key].split()) for row in data["preference"]] for key in ("chosen", "rejected"))
    assert abs(sum(chosen) - sum(rejected)) < 0.1 * sum(rejected)
    longer = sum(a > b for a, b in zip(chosen, rejected)) / len(chosen)
    assert 0.25 < longer < 0.75
    for key in ("chosen", "rejected"):
        openings = Counter(" ".join(row[key].split()[:3]) for row in data["preference"])
        assert len(openings) >= 8 and max(openings.values()) <= 25


def test_wrong_and_right_claims_cannot_be_told_apart_by_length_or_loaded_words():
    loaded = "all every never always completely nothing nobody everybody no not useless pointless waste often usually can may more less better worse"
    counts = {kind: Counter(word for topic in CLAIMS for word in re.findall(r"[a-z]+", topic[kind].lower())) for kind in ("wrong", "right")}
    for word in loaded.split():
        assert abs(counts["wrong"][word] - counts["right"][word]) <= 4, word
    for topic in CLAIMS:
        assert abs(len(topic["wrong"].split()) - len(topic["right"].split())) <= 2, topic["name"]
