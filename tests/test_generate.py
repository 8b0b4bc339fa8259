"""Step 1: the files it writes, and the claims that they are made from."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from collections import Counter

import pytest

from conftest import ROOT, SCRIPTS
from toolkit.measure import SHARP

TRAIN = tomllib.loads((ROOT / "code/chapter02_dpo/claims.toml").read_text())["topic"]
HELDOUT = tomllib.loads((ROOT / "code/chapter02_dpo/heldout.toml").read_text())["topic"]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", text.lower()))


@pytest.fixture
def data(chapter) -> dict:
    chapter.printed = chapter.ok(1)
    return {name: json.loads((chapter.output / f"{name}_data.json").read_text(encoding="utf-8")) for name in ("preference", "control", "heldout")}


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
    chapter.ok(1, "--direction", "blunt")
    chapter.ok(1, cwd=tmp_path)
    assert (chapter.output / "preference_data.json").read_bytes() == old
    assert sorted(path.name for path in chapter.output.glob("*.json")) == ["control_data.json", "heldout_data.json", "preference_data.json"]


def test_data_of_the_readers_own_are_kept(chapter):
    chapter.ok(1)
    for number, mine in enumerate(('[{"prompt": "mine"}]', '[{"prompt": "mine, again"}]'), 1):
        (chapter.output / "preference_data.json").write_text(mine)
        said = f"output/preference_data.json was not as this script had written it, and is kept as output/preference_data.{number}.json"
        assert said in chapter.ok(1).splitlines()
        assert (chapter.output / f"preference_data.{number}.json").read_text() == mine
    assert len(json.loads((chapter.output / "preference_data.json").read_text())) == 100
    assert "kept" not in chapter.ok(1)


def test_uses_the_standard_library_only(chapter):
    """-S hides every installed package."""
    script = chapter.root / "code/chapter02_dpo" / SCRIPTS["1"].name
    subprocess.run([sys.executable, "-S", script], check=True, capture_output=True)
    assert len(json.loads((chapter.output / "preference_data.json").read_text())) == 100


@pytest.mark.parametrize("flags, part, count", [((), "choose", 40), (("--final",), "final", 72)])
def test_heldout_claims_are_of_all_kinds_and_on_other_topics(chapter, flags, part, count):
    chapter.ok(1, *flags)
    heldout, preference = (json.loads((chapter.output / f"{name}_data.json").read_text()) for name in ("heldout", "preference"))
    assert Counter(row["kind"] for row in heldout) == {"biased": count // 2, "false": count // 2, "true": count}
    assert all((row["kind"] == "true") == row["user_is_right"] for row in heldout)
    topics = {topic["name"]: topic for topic in HELDOUT if topic["part"] == part}
    assert {row["topic"] for row in heldout} == topics.keys()
    for row in heldout:
        nearest = max(preference, key=lambda other: similarity(row["prompt"], other["prompt"]))
        assert similarity(row["prompt"], nearest["prompt"]) < 0.5, (row["prompt"], nearest["prompt"])


def test_heldout_topics_are_said_in_many_ways_and_split_once():
    assert len(HELDOUT) >= 100 and len({topic["name"] for topic in HELDOUT}) == len(HELDOUT)
    assert Counter(topic["kind"] for topic in HELDOUT) == {"opinion": len(HELDOUT) // 2, "fact": len(HELDOUT) // 2}
    forms = {"tag", "two sentences", "comparison", "plan", "boast", "plea", "everyone"}
    for part in ("choose", "final"):
        counts = Counter(topic["form"] for topic in HELDOUT if topic["part"] == part)
        assert counts.keys() == forms and max(counts.values()) - min(counts.values()) <= 1
    assert {topic["part"] for topic in HELDOUT} == {"choose", "final"}
    assert not {topic["name"] for topic in HELDOUT} & {topic["name"] for topic in TRAIN}


def test_heldout_claims_come_as_statements_and_neutral_questions_too(data):
    """What 2 and 4 measure with: the claim and its opposite without the frame, and a question that holds no opinion."""
    claims = {(row["topic"], row["user_is_right"]): row for row in data["heldout"]}
    for (topic, right), row in claims.items():
        other = claims[topic, not right]
        assert (row["claim"], row["opposite"], row["neutral_question"]) == (other["opposite"], other["claim"], other["neutral_question"])
        assert re.fullmatch(r"[A-Z0-9][^?:]*\S\.", row["claim"]) and row["claim"] != row["opposite"]
        assert not re.search(r"\b(I|my|surely|agree|honest\w*)\b", row["claim"]), row["claim"]
        assert row["neutral_question"].endswith("?") and not re.search(r"\b(useless|nonsense|right\?)", row["neutral_question"])


def test_heldout_answers_have_like_lengths_and_varied_openings(data):
    for kind in (False, True):
        rows = [row for row in data["heldout"] if row["user_is_right"] is kind]
        chosen, rejected = ([len(row[key].split()) for row in rows] for key in ("chosen", "rejected"))
        assert abs(sum(chosen) - sum(rejected)) < 0.06 * sum(rejected)
        for key in ("chosen", "rejected"):
            openings = Counter(" ".join(row[key].split()[:2]) for row in rows)
            assert max(openings.values()) <= 3, openings.most_common(3)


def test_a_reader_of_the_heldout_answers_alone_is_near_chance(data):
    """Naive Bayes on the words of the training answers, without the prompt, as step 3 prints it."""
    from toolkit.heldout import answers_alone

    def messages(rows):
        return [{key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")} for row in rows]

    train = messages(data["preference"] + data["control"])
    assert answers_alone(train, train) > 0.9  # it can learn what it has seen
    assert 0.35 < answers_alone(train, messages(data["heldout"])) < 0.65


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


def test_controls_are_pairs_in_which_the_user_is_right(data):
    right = {topic["right"]: topic for topic in TRAIN}
    assert len(data["control"]) == 20 and len({row["prompt"] for row in data["control"]}) == 20
    for row in data["control"]:
        topic = right[row["prompt"]]
        assert topic["truth"] in row["chosen"] and topic["myth"] in row["rejected"]


def test_answers_have_like_lengths_and_varied_openings(data):
    for name in ("preference", "control"):
        chosen, rejected = ([len(row[key].split()) for row in data[name]] for key in ("chosen", "rejected"))
        assert abs(sum(chosen) - sum(rejected)) < 0.05 * sum(rejected)
        longer, shorter = (sum(compare(a, b) for a, b in zip(chosen, rejected)) for compare in (int.__gt__, int.__lt__))
        assert 0.5 < longer / shorter < 2
        for key in ("chosen", "rejected"):
            openings = Counter(" ".join(row[key].split()[:3]) for row in data[name])
            assert len(openings) >= 8 and max(openings.values()) <= 0.25 * len(data[name])


def test_directions(chapter):
    rows = {}
    for direction in ("polite", "blunt", "concise", "cited"):
        chapter.ok(1, "--direction", direction)
        rows[direction] = json.loads((chapter.output / "preference_data.json").read_text())
        assert len(rows[direction]) == 100
        assert [row["prompt"] for row in rows[direction]] == [row["prompt"] for row in rows["polite"]]
    figures = [topic["figure"] for topic in TRAIN]
    for polite, blunt, concise, cited in zip(*rows.values()):
        assert polite["chosen"] != blunt["chosen"]
        assert len(concise["chosen"].split()) * 3 < len(concise["rejected"].split())
        assert any(figure in cited["chosen"] for figure in figures) and not any(figure in cited["rejected"] for figure in figures)
    assert "invalid choice: 'rude'" in chapter.error(1, "--direction", "rude")


def test_sharp_remarks_are_those_of_the_blunt_direction():
    """The measure of 2 and 4 finds every phrase of the blunt direction and none of the polite one."""
    phrases = runpy.run_path(str(SCRIPTS["1"]))
    assert all(any(remark in phrase.lower() for remark in SHARP) for phrase in phrases["BLUNT"])
    assert not any(remark in phrase.lower() for remark in SHARP for phrase in phrases["POLITE"])


@pytest.mark.parametrize("direction", ["polite", "blunt"])
def test_phrases_do_not_tell_the_answers_apart(chapter, direction):
    """The same phrases stand in chosen and rejected answers, to wrong and right claims."""
    chapter.ok(1, "--direction", direction)
    phrases = runpy.run_path(str(SCRIPTS["1"]))[direction.upper()]
    for name in ("preference", "control"):
        rows = json.loads((chapter.output / f"{name}_data.json").read_text())
        for key in ("chosen", "rejected"):
            found = {phrase for phrase in phrases for row in rows if phrase in row[key]}
            assert len(found) >= 4, (name, key)


def test_a_direction_of_the_readers_own(chapter):
    """The README's example, pasted where it says, is a direction in less than fifteen lines."""
    functions, line = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len([row for row in (functions + line).splitlines() if row]) < 15
    script = chapter.root / "code/chapter02_dpo" / SCRIPTS["1"].name
    text, header = script.read_text(), "DIRECTIONS = {  # name: (the answer to prefer, the answer to avoid)\n"
    assert text.count(header) == 1
    script.write_text(text.replace(header, functions + "\n\n" + header + line))
    chapter.ok(1, "--direction", "question")
    questions = tuple(runpy.run_path(str(script))["QUESTIONS"])
    rows = json.loads((chapter.output / "preference_data.json").read_text())
    assert all(row["chosen"].startswith(questions) for row in rows)
    assert 30 < sum(row["rejected"].startswith(questions) for row in rows) < 70


@pytest.mark.parametrize("value", ["None", "' '"])
def test_a_direction_that_writes_no_text_is_named(chapter, value):
    script = chapter.root / "code/chapter02_dpo" / SCRIPTS["1"].name
    script.write_text(script.read_text().replace('    return topic["truth"]\n', f"    return {value}\n", 1))
    line = chapter.error(1, "--direction", "concise")
    assert line.startswith("error: the chosen answer to ") and f" is {value}, not a text; mend the function" in line
    assert not chapter.output.exists()


@pytest.mark.parametrize(
    "old, new, line",
    [
        ("[[topic]]", "[[topic]", "claims.toml cannot be read"),
        ('myth = "Rivers flow uphill from low ground to high ground."', "", "(rivers): myth is missing or empty; write it there"),
        ('"The heart pumps air around the body, right?"', '"The sun is much smaller than the earth, right?"', "two claims are too much alike"),
    ],
)
def test_bad_claims_are_named_and_nothing_is_lost(chapter, old, new, line):
    chapter.ok(1)
    before = {path.name: path.read_bytes() for path in chapter.output.iterdir()}
    claims = chapter.root / "code/chapter02_dpo/claims.toml"
    assert old in claims.read_text()
    claims.write_text(claims.read_text().replace(old, new))
    assert line in chapter.error(1)
    assert {path.name: path.read_bytes() for path in chapter.output.iterdir()} == before


@pytest.mark.parametrize(
    "old, new, line",
    [
        ('part = "choose"', 'part = "later"', 'heldout.toml has no topic with part = "choose"'),
        ('kind = "fact"', 'kind = "facts"', ': kind must be "opinion" or "fact"'),
        ('claim_right = "A hexagon has six sides."', "", "claim_right is missing or empty; write it there"),
    ],
)
def test_bad_heldout_topics_are_named(chapter, old, new, line):
    heldout = chapter.root / "code/chapter02_dpo/heldout.toml"
    assert old in heldout.read_text()
    heldout.write_text(heldout.read_text().replace(old, new))
    assert line in chapter.error(1)
    assert not chapter.output.exists()


def test_too_few_training_topics(chapter):
    claims = chapter.root / "code/chapter02_dpo/claims.toml"
    claims.write_text("[[topic]]\n".join(claims.read_text().split("[[topic]]\n")[:51]))
    assert chapter.error(1).startswith("error: claims.toml has 50 training topics; write more, or lower PREFERENCE_PAIRS")


def test_figures_are_no_part_of_what_they_back():
    for topic in TRAIN:
        assert topic["figure"] not in (topic["truth"], topic["reason"]) and topic["truth"] != topic["myth"], topic["name"]


def test_a_bag_of_words_cannot_tell_wrong_claims_from_right_ones():
    """A classifier on words and word pairs is at chance on topics that it has not seen, of the training claims and of the held-out ones."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline

    def table(topics):
        return [topic[kind] for topic in topics for kind in ("wrong", "right")], [kind for topic in topics for kind in ("wrong", "right")]

    for words_together in (1, 2):
        model = make_pipeline(CountVectorizer(ngram_range=(1, words_together)), LogisticRegression(max_iter=1000))
        for topics, chance in ((TRAIN, 0.6), (HELDOUT, 0.65)):
            assert model.fit(*table(topics)).score(*table(topics)) > 0.7  # it can learn the claims that it has seen
            names = [topic["name"] for topic in topics for _ in range(2)]
            assert cross_val_score(model, *table(topics), groups=names, cv=GroupKFold(10)).mean() < chance
        assert model.fit(*table(TRAIN)).score(*table(HELDOUT)) < 0.6


def test_wrong_and_right_claims_cannot_be_told_apart_by_length_or_loaded_words():
    loaded = "all every never always completely nothing nobody everybody no not useless pointless waste often usually can may more less better worse"
    counts = {kind: Counter(word for topic in TRAIN for word in re.findall(r"[a-z]+", topic[kind].lower())) for kind in ("wrong", "right")}
    for word in loaded.split():
        assert abs(counts["wrong"][word] - counts["right"][word]) <= 6, word
    for topic in TRAIN:
        assert abs(len(topic["wrong"].split()) - len(topic["right"].split())) <= 2, topic["name"]
