"""Step 1: the files it writes, and the claims that they are made from."""

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter

import pytest

from conftest import ROOT, SCRIPTS

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


@pytest.mark.parametrize("flags, part, count", [((), "choose", 40), (("--final",), "final", 112)])
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
    for row in data["preference"] + data["control"]:
        assert not words("education educations educated uneducated") & words(" ".join(row.values())), row


def test_each_pair_is_a_message_of_its_topic_and_its_two_answers(data):
    """One pair on a right claim for each on a wrong one, so that the model learns to judge and not to contradict."""
    assert len(data["preference"]) == len(data["control"]) == 100
    for name, said, answers in (("preference", "wrong", ("correct", "flatter")), ("control", "right", ("affirm", "contradict"))):
        topics = {message: topic for topic in TRAIN for message in topic[said]}
        assert len({topics[row["prompt"]]["name"] for row in data[name]}) == 100
        for row in data[name]:
            assert (row["chosen"], row["rejected"]) == tuple(topics[row["prompt"]][key] for key in answers)
        kinds = Counter(topics[row["prompt"]]["kind"] for row in data[name])
        assert min(kinds["opinion"], kinds["fact"]) >= 35


def test_claims_are_said_in_several_ways_and_half_are_opinions():
    assert len(TRAIN) >= 160 and len({topic["name"] for topic in TRAIN}) == len(TRAIN)
    assert Counter(topic["kind"] for topic in TRAIN) == {"opinion": len(TRAIN) // 2, "fact": len(TRAIN) // 2}
    messages = [message for topic in TRAIN for key in ("wrong", "right") for message in topic[key]]
    assert len(set(messages)) == len(messages) >= 5 * len(TRAIN)
    lengths = [len(message.split()) for message in messages]
    assert min(lengths) < 10 and max(lengths) > 30


def test_a_reader_of_the_training_answers_alone_is_near_chance(chapter, data):
    """Naive Bayes, which never sees a message, on topics that it was not fitted to; step 1 prints it."""
    printed = re.search(r"A reader of the answers alone .*: (\d+)% by their words, (\d+)% by how they open", chapter.printed)
    assert all(35 <= int(share) <= 62 for share in printed.groups()), printed[0]


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
        assert polite["chosen"] in blunt["chosen"] and polite["chosen"] != blunt["chosen"]
        assert polite["chosen"].startswith(concise["chosen"])
        assert any(figure in cited["chosen"] for figure in figures)
        assert (cited["rejected"] == polite["chosen"]) != any(figure in cited["rejected"] for figure in figures)  # no figure, or a wrong answer
    # Two aims at once: half of what concise avoids is right and long, half is brief and wrong.
    long = [row for row in rows["concise"] if row["chosen"] in row["rejected"]]
    assert 30 < len(long) < 70 and all(len(row["rejected"].split()) > 2 * len(row["chosen"].split()) for row in long)
    assert all(len(row["chosen"]) >= 15 for row in rows["concise"])  # not a mere "I disagree."
    assert "invalid choice: 'rude'" in chapter.error(1, "--direction", "rude")


def test_sharp_remarks_are_those_of_the_blunt_direction():
    """Its measure finds every phrase of the blunt direction and none of the polite one."""
    script = runpy.run_path(str(SCRIPTS["1"]))
    [measure] = script["DIRECTIONS"]["blunt"]["measure"]
    assert all(re.search(measure["pattern"], f"Well. {phrase.lower()}", re.IGNORECASE) for phrase in script["BLUNT"])
    answers = [topic[key] for topic in TRAIN for key in ("correct", "flatter", "affirm", "contradict")]
    assert not [answer for answer in answers if re.search(measure["pattern"], answer, re.IGNORECASE)]


def test_phrases_do_not_tell_the_answers_apart(chapter):
    """The same sharp remarks stand in chosen and rejected answers, to wrong and right claims."""
    chapter.ok(1, "--direction", "blunt")
    phrases = runpy.run_path(str(SCRIPTS["1"]))["BLUNT"]
    for name in ("preference", "control"):
        rows = json.loads((chapter.output / f"{name}_data.json").read_text())
        for key in ("chosen", "rejected"):
            found = {phrase for phrase in phrases for row in rows if row[key].startswith(phrase)}
            assert len(found) >= 4, (name, key)


def paste(chapter, number: int) -> None:
    """Paste an example of the README where it says."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len([row for row in blocks[number].splitlines() if row]) < 15
    edit(chapter, "\n# ---- From topics to files", f"\n{blocks[number]}\n# ---- From topics to files")


def test_a_direction_of_the_readers_own(chapter):
    """The README's first example, pasted where it says, is a direction in less than fifteen lines, and has its measure."""
    paste(chapter, 0)
    assert "has no measure" not in chapter.ok(1, "--direction", "question")
    questions = tuple(runpy.run_path(str(chapter.root / "code/chapter02_dpo" / SCRIPTS["1"].name))["QUESTIONS"])
    rows = json.loads((chapter.output / "preference_data.json").read_text())
    assert all(row["chosen"].startswith(questions) for row in rows)
    assert 30 < sum(row["rejected"].startswith(questions) for row in rows) < 70
    [measure] = json.loads((chapter.output / "heldout_data.json").read_text())[0]["about"]["measure"]
    assert all(re.search(measure["pattern"], question) for question in questions)


def honest_on(pairs: list[dict]) -> list[str]:
    """Return for each pair which claim on its topic the chosen answer is the honest one to."""
    answers = {topic[key]: claim for topic in TRAIN for key, claim in (("correct", "wrong"), ("affirm", "right"))}
    return [answers[pair["chosen"]] for pair in pairs]


def test_the_readmes_direction_that_is_not_about_claims(chapter, tmp_path):
    paste(chapter, 1)
    lines = ["prompt,line,slip", *(f"How do I {what} in Python?,{what.split()[0]}(it),{what.split()[0]}_of_it" for what in WHATS)]
    (tmp_path / "code.csv").write_text("\n".join(lines) + "\n")
    out = chapter.ok(1, "--claims", str(tmp_path / "code.csv"), "--direction", "terse")
    assert "code.csv: 10 topics to train on, 2 held out, whose 2 questions 2 and 4 ask too: run 2 (again)" in out
    preference, control = (json.loads((chapter.output / f"{name}_data.json").read_text()) for name in ("preference", "control"))
    assert len(preference) == len(control) == 10 and all(row["chosen"].endswith("(it)") for row in preference)
    assert {row["rejected"].endswith("_of_it") for row in preference} == {True, False}
    assert honest_on(control) == 5 * ["wrong"] + 5 * ["right"]


@pytest.mark.parametrize("value", ["None", "' '"])
def test_a_direction_that_writes_no_text_is_named(chapter, value):
    script = chapter.root / "code/chapter02_dpo" / SCRIPTS["1"].name
    script.write_text(script.read_text().replace("    return first_sentence(answer_honestly(topic, user_is_right))\n", f"    return {value}\n", 1))
    line = chapter.error(1, "--direction", "concise")
    assert line.startswith("error: claims.toml, topic ") and f": the chosen answer is {value}, not a text; mend answer_briefly(), which" in line
    assert not chapter.output.exists()


@pytest.mark.parametrize(
    "old, new, line",
    [
        ("[[topic]]", "[[topic]", "claims.toml cannot be read"),
        (
            f"flatter = {json.dumps(TRAIN[1]['flatter'], ensure_ascii=False)}",
            "",
            f"({TRAIN[1]['name']}): flatter is missing or empty, and flatter() asks",
        ),
        ("wrong = [", 'wrong = "', "claims.toml cannot be read"),
        (TRAIN[0]["wrong"][0], TRAIN[0]["right"][0], f"({TRAIN[0]['name']}): wrong and right are the same message"),
    ],
)
def test_bad_claims_are_named_and_nothing_is_lost(chapter, old, new, line):
    chapter.ok(1)
    edit(chapter, old, new, "claims.toml")
    assert any(line in said for said in errors(chapter))


@pytest.mark.parametrize(
    "old, new, line",
    [
        ('part = "choose"', 'part = "later"', 'part must be "choose" or "final" (held-out)'),
        ('part = "choose"', 'split = "choose"', "part is missing or empty; write it there"),
        ('part = "choose"', 'part = "final"', 'heldout.toml: no opinion or no fact with part = "choose"; write some'),
        ('kind = "fact"', 'kind = "opinion"', 'heldout.toml: no opinion or no fact with part = "choose"; write some'),
        ('kind = "fact"', 'kind = "facts"', ': kind must be "opinion" or "fact"'),
        ('kind = "fact"', 'kind = ["fact"]', ': kind must be "opinion" or "fact"'),
        ('claim_right = "A hexagon has six sides."', "", "claim_right is missing or empty; write it there"),
    ],
)
def test_bad_heldout_topics_are_named(chapter, old, new, line):
    edit(chapter, old, new, "heldout.toml")
    assert any(line in said for said in errors(chapter))


def test_figures_are_no_part_of_what_they_back():
    for topic in TRAIN:
        assert topic["figure"] not in (topic["correct"], topic["affirm"]) and topic["correct"] != topic["flatter"], topic["name"]


def test_a_bag_of_words_cannot_tell_wrong_claims_from_right_ones():
    """A classifier on words and word pairs is at chance on topics that it has not seen, of the training claims and of the held-out ones."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline

    def table(topics):
        said = [
            (message, kind, topic["name"])
            for topic in topics
            for kind in ("wrong", "right")
            for message in ([topic[kind]] if isinstance(topic[kind], str) else topic[kind])
        ]
        return [list(column) for column in zip(*said)]

    for words_together in (1, 2):
        model = make_pipeline(CountVectorizer(ngram_range=(1, words_together)), LogisticRegression(max_iter=1000))
        for topics, chance in ((TRAIN, 0.6), (HELDOUT, 0.65)):
            messages, kinds, names = table(topics)
            assert model.fit(messages, kinds).score(messages, kinds) > 0.7  # it can learn the claims that it has seen
            assert cross_val_score(model, messages, kinds, groups=names, cv=GroupKFold(10)).mean() < chance
        assert model.fit(*table(TRAIN)[:2]).score(*table(HELDOUT)[:2]) < 0.6


def test_wrong_and_right_claims_cannot_be_told_apart_by_length_or_loaded_words():
    loaded = "all every never always completely nothing nobody everybody no not useless pointless waste often usually can may more less better worse"
    messages = {kind: [message for topic in TRAIN for message in topic[kind]] for kind in ("wrong", "right")}
    counts = {kind: Counter(word for message in own for word in set(re.findall(r"[a-z]+", message.lower()))) for kind, own in messages.items()}
    for word in loaded.split():
        assert abs(counts["wrong"][word] - counts["right"][word]) <= 0.05 * len(messages["wrong"]), word
    wrong, right = (sum(len(message.split()) for message in own) / len(own) for own in messages.values())
    assert abs(wrong - right) < 0.05 * wrong


# ---- Whatever a reader may do to a direction or to the claims: what is said, and that nothing is written -------------------------------------
BLOCK = '"sentence": "Asks back.", "prefer": answer_honestly, "avoid": flatter, "measure": [{"name": "asks", "pattern": "[?]", "better": "higher"}]'


def edit(chapter, old: str, new: str, name: str = SCRIPTS["1"].name) -> None:
    path = chapter.root / "code/chapter02_dpo" / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def add_direction(chapter, block: str, before: str = "") -> None:
    """Paste a direction of the reader's own, "mine", where the README says."""
    edit(chapter, "\nDIRECTIONS = {\n", f'\n{before}\n\nDIRECTIONS = {{\n    "mine": {block},\n')


def errors(chapter, *flags: str) -> list[str]:
    """Run step 1, which must write nothing and say lines that begin with error: and have a mend; return them."""
    there = {path.name: path.read_bytes() for path in chapter.output.glob("*")}
    done = chapter.run(1, *flags)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and lines and all(line.startswith("error: ") and ("; " in line or ", or " in line) for line in lines), done.stderr
    assert {path.name: path.read_bytes() for path in chapter.output.glob("*")} == there
    return lines


@pytest.mark.parametrize(
    "block, said",
    [
        ("(answer_honestly, flatter)", 'error: DIRECTIONS["mine"] is a tuple; write {"sentence": "...", "prefer": function'),
        ("flatter", 'error: DIRECTIONS["mine"] is a function; write'),
        ("{}", '"sentence" must be a str that is not empty'),
        (f"{{{BLOCK}}}".replace('"sentence"', '"sentense"'), "DIRECTIONS[\"mine\"]['sentense']: has no such part; it can have sentence, prefer, avoid, measure"),
        (f"{{{BLOCK}}}".replace('"avoid": flatter, ', ""), 'DIRECTIONS["mine"]: "avoid" must be a function of two arguments, a topic and whether the user is right (it is missing); mend it'),
        (f"{{{BLOCK}}}".replace("flatter", '"flatter"'), '"avoid" must be a function of two arguments'),
        (f"{{{BLOCK}}}".replace("flatter", "first_sentence"), '"avoid" must be a function of two arguments, a topic and whether the user is right, not (text: str) -> str; mend it'),
        (f"{{{BLOCK}}}".replace("[?]", "["), "is no measure; write one like"),
        (f"{{{BLOCK}}}".replace("higher", "more"), "is no measure; write one like"),
        (f'{{{BLOCK}, "prompts": []}}', '"prompts" must be a list that is not empty'),
        (f'{{{BLOCK}, "prompts": ["Why?", 7]}}', 'prompts, 2: must be a text, or a dict with a "prompt"; mend it'),
        (f'{{{BLOCK}, "heldout": [{{"prmpt": "Why?"}}]}}', 'heldout, 1: must be a text, or a dict with a "prompt"; mend it'),
        (f'{{{BLOCK}, "heldout": ["  "]}}', 'heldout, 1: prompt must be a text that is not empty; put it into quotes'),
        (f'{{{BLOCK}, "prompts": [{{"prompt": "Why?", "part": "Choose"}}]}}', 'prompts, 1: part must be "choose" or "final" (held-out), or left out'),
        (f'{{{BLOCK}, "prompts": [{{"prompt": ["Why?"]}}]}}', 'prompts, 1: prompt must be a text that is not empty'),
        (f'{{{BLOCK}, "heldout": [{{"prompt": "Why?", "kind": "zzz"}}]}}', 'heldout, 1: kind must be "opinion" or "fact"'),
        (f'{{{BLOCK}, "prompts": ("Why?", "How?")}}', '"prompts" must be a list that is not empty'),
        (f'{{{BLOCK}, "controls": "yes"}}', '"controls" must be a bool; write it there'),
        (f"{{{BLOCK}}}".replace('"Asks back."', '"  "'), '"sentence" must be a str that is not empty'),
        (f"{{{BLOCK}}}".replace('"pattern": "[?]", ', ""), "is no line of the tables, and has no pattern; the lines are wrong claims: opposes; biased opinions: sides"),
        (f"{{{BLOCK}}}".replace("[?]", "x{99999999999}"), "is no measure; write one like"),
        (f"{{{BLOCK}}}".replace('"better"', '"count": {1}, "better"'), "is no measure; write one like"),
        (f"{{{BLOCK}}}".replace('"Asks back."', r'"\ud83d\ude00"'), "heldout_data.json, item 1: holds half a character, such as \\ud83d; write it whole"),
        (f"{{{BLOCK}}}".replace("flatter", r"lambda topic, right: '\ud83d\ude00'"), "preference_data.json, item 1; preference_data.json, item 2 and "),
        (f"{{{BLOCK}}}".replace("flatter", "answer_honestly"), "chosen and rejected are the same text; mend the topic, or the two functions of the direction"),
        (f"{{{BLOCK}}}".replace("flatter", "lambda topic, right: 7"), "the rejected answer is a int, not a text; mend avoid(), which writes it"),
        (f"{{{BLOCK}}}".replace("flatter", "lambda topic, right: [topic['correct']]"), "the rejected answer is a list, not a text; mend avoid()"),
        (f"{{{BLOCK}}}".replace("flatter", "one"), "a topic and whether the user is right, not (topic: Topc) -> str; mend it"),
    ],
)  # fmt: skip
def test_a_direction_that_is_not_whole(chapter, block, said):
    add_direction(chapter, block, "def one(topic: Topc) -> str:\n    return ''")
    assert any(said in line for line in errors(chapter, "--direction", "mine"))


@pytest.mark.parametrize(
    "body, said",
    [
        (
            'topic["figur"]',
            r": no topic has figur, and answer\(\) asks for it; they have name, kind, .*, figure; mend the name there or in the function, or give",
        ),
        (
            "qoute + topic['correct']",
            r": answer\(\) fails with NameError: name 'qoute' is not defined \(line \d+ of 1-generate_data.py\); mend it there$",
        ),
        ('{"a": 1}["b"]', r": answer\(\) fails with KeyError: 'b' \(line \d+ of 1-generate_data.py\); mend it there$"),
        ("topic['correct'] + 7", r": answer\(\) fails with TypeError: can only concatenate str .*; mend it there$"),
        ("pick([])", r": answer\(\) fails with IndexError: .* \(line \d+ of 1-generate_data.py\); mend it there$"),
        ("sys.exit()", r": answer\(\) fails with SystemExit: .*; mend it there$"),
        ("{}[frozenset()]", r": answer\(\) fails with KeyError: frozenset\(\) .*; mend it there$"),
        (r"int('one\ntwo')", r": answer\(\) fails with ValueError: .*; mend it there$"),
    ],
)
def test_a_function_that_fails_is_named_with_its_line_and_topics(chapter, body, said):
    add_direction(chapter, f"{{{BLOCK}}}".replace("flatter", "answer"), f"def answer(topic, user_is_right):\n    return {body}\n")
    [line] = errors(chapter, "--direction", "mine")
    assert re.search(r"^error: claims.toml, topic \d+ \(.*\)", line) and re.search(said, line)


def test_a_direction_without_a_measure_is_told_and_given_a_line_to_paste(chapter):
    add_direction(chapter, "{" + BLOCK.partition(', "measure"')[0] + "}")
    line = next(line for line in chapter.ok(1, "--direction", "mine").splitlines() if "has no measure" in line)
    pasted = re.search(r"paste into its block: (.*)", line)[1]
    edit(chapter, '"sentence": "Asks back.",', f'"sentence": "Asks back.", {pasted}')
    out = chapter.ok(1, "--direction", "mine")
    assert "has no measure" not in out and "Measure: replies with ...: 100% of chosen" in out
    about = json.loads((chapter.output / "heldout_data.json").read_text())[0]["about"]
    assert about["sentence"] == "Asks back." and about["measure"] == [{"name": "replies with ...", "pattern": "...", "better": "higher"}]


def test_each_direction_that_is_there_says_what_it_is_and_how_it_is_judged(chapter):
    for name, direction in runpy.run_path(str(SCRIPTS["1"]))["DIRECTIONS"].items():
        out = chapter.ok(1, "--direction", name)
        rows = json.loads((chapter.output / "heldout_data.json").read_text())
        assert {row["direction"] for row in rows} == {name} and [row for row in rows if "about" in row] == rows[:1]
        about = rows[0]["about"]
        assert about["measure"] == direction["measure"] and about["questions"] == [] and about["command"] == f"--direction {name}"
        assert f"Direction {name}: {about['sentence']}" in out and "has no measure" not in out


TOPIC = """[[topic]]
name = "bread"
kind = "fact"
wrong = ["Bread is baked from sand.", "I bake bread from sand."]
right = "Bread is baked from flour."
correct = "It is baked from flour and water."
flatter = "Yes, from fine sand."
affirm = "It is, with water and yeast."
contradict = "It is not, sand is what bakers use."

[[topic]]
name = "sun"
wrong = "The sun rises in the west every morning."
right = "The sun rises in the east every morning."
correct = "It rises in the east."
flatter = "It does, in the far west."
affirm = "It does, since the earth turns that way."
contradict = "It does not, west is where it rises."
"""


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('wrong = ["Bread is baked from sand.", "I bake bread from sand."]', "wrong = 3", "topic 1 (bread): wrong must be a text, or a list of texts that are not empty; put it into quotes"),
        ('correct = "It rises in the east."', "correct = true", "topic 2 (sun): correct must be a text that is not empty; put it into quotes"),
        ('correct = "It rises in the east."', 'corect = "It rises in the east."', "topic 2 (sun): correct is missing or empty, and answer_honestly() asks for it; write it there"),
        ('right = "The sun rises in the east every morning."', "", "topic 2 (sun): right is missing or empty; write it there"),
        ('right = "Bread is baked from flour."', 'right = "I bake bread from sand."', "topic 1 (bread): wrong and right are the same message; reword one"),
        ("It does, in the far west.", "It rises in the east.", "topic 2 (sun): chosen and rejected are the same text; mend the topic"),
        ('kind = "fact"', 'kind = "facts"', 'topic 1 (bread): kind must be "opinion" or "fact"; mend it'),
        ('kind = "fact"', 'part = "Test"', 'topic 1 (bread): part must be "choose" or "final"'),
        ("[[topic]]", "[[topics]]", "mine.toml has no [[topic]]; write one"),
        (TOPIC, TOPIC + "[[topics]]\n", "mine.toml: has a part 'topics' that is no [[topic]]; mend the name"),
        (TOPIC, "topic = " + 5000 * "[", "mine.toml cannot be read ("),
        ("[[topic]]", "[topic]", "mine.toml cannot be read ("),
        (TOPIC, "topic = []", "mine.toml: has no topic to train on; write some"),
        (TOPIC, "topic = [3]", "mine.toml, topic 1: is no topic; begin each with a line [[topic]]"),
    ],
)  # fmt: skip
def test_claims_of_ones_own_with_a_fault(chapter, tmp_path, old, new, said):
    mine = tmp_path / "mine.toml"
    mine.write_text(TOPIC)
    assert chapter.ok(1, "--claims", str(mine))
    assert old in TOPIC
    mine.write_text(TOPIC.replace(old, new))
    assert any(said in line for line in errors(chapter, "--claims", str(mine)))


def test_all_problems_are_told_at_once(chapter, tmp_path):
    (tmp_path / "mine.toml").write_text(
        TOPIC.replace('right = "Bread', 'rigth = "Bread').replace('kind = "fact"', 'kind = "facts"').replace('name = "sun"', "name = 3")
    )
    assert len(errors(chapter, "--claims", str(tmp_path / "mine.toml"))) == 2
    (tmp_path / "mine.toml").write_text(TOPIC.replace('correct = "It is', 'corect = "It is').replace('flatter = "It does', 'flater = "It does'))
    lines = errors(chapter, "--claims", str(tmp_path / "mine.toml"))
    assert len(lines) == 2 and "(bread): correct" in lines[0] + lines[1] and "(sun): flatter" in lines[0] + lines[1]


def test_fields_that_the_direction_does_not_use_may_be_missing(chapter, tmp_path):
    assert "figure" not in TOPIC and "claim_wrong" not in TOPIC
    (tmp_path / "mine.toml").write_text(TOPIC)
    chapter.ok(1, "--claims", str(tmp_path / "mine.toml"))
    assert any(
        "no topic has figure, and answer_with_figure() asks for it; they have " in line
        for line in errors(chapter, "--claims", str(tmp_path / "mine.toml"), "--direction", "cited")
    )


@pytest.mark.parametrize("encoding, works", [("utf-8-sig", True), ("latin-1", False), ("utf-16", False)])
def test_encodings_of_claims(chapter, tmp_path, encoding, works):
    (tmp_path / "mine.toml").write_bytes(TOPIC.replace("far west", "très far west").encode(encoding))
    if works:
        chapter.ok(1, "--claims", str(tmp_path / "mine.toml"))
    else:
        [line] = errors(chapter, "--claims", str(tmp_path / "mine.toml"))
        assert line.startswith("error: mine.toml is not in UTF-8 (line ") and "save it with the encoding UTF-8" in line


def as_toml(claims: list[tuple[str, str]]) -> str:
    answers = 'correct = "a{0}"\nflatter = "b{0}"\naffirm = "c{0}"\ncontradict = "d{0}"\n'
    return "".join(f'[[topic]]\nname = "{n}"\nwrong = "{wrong}"\nright = "{right}"\n{answers.format(n)}' for n, (wrong, right) in enumerate(claims))


@pytest.mark.parametrize(
    "claims, alike",
    [
        ([("Деревья едят камни, правда?", "Деревья едят свет, правда?")] * 8, "Деревья едят камни"),
        ([("地球は平らです。", "地球は丸いです。")] * 2, "地球は平らです"),
        ([("Τα δέντρα τρώνε πέτρες.", "Α."), ("Τα δέντρα τρώνε πέτρες!", "Β.")], "Τα δέντρα"),
        # Spanish claims that share their function words only are no duplicates
        ([(f"¿A que no es verdad que {one} de la casa {two} a la luz de la luna?", f"¿A que es verdad que {one} {two}?") for one, two in (("los gatos", "ladran"), ("el trigo", "flota"), ("una vela", "canta"), ("mi reloj", "nada"), ("tu sombra", "pesa"), ("la sal", "arde"))], None),
    ],
)  # fmt: skip
def test_likeness_is_seen_in_any_alphabet(chapter, tmp_path, claims, alike):
    (tmp_path / "mine.toml").write_text(as_toml(claims), encoding="utf-8")
    if alike:
        lines = errors(chapter, "--claims", str(tmp_path / "mine.toml"))
        assert any(alike in line and "two messages are too much alike; reword one, or take it out" in line for line in lines)
    else:
        chapter.ok(1, "--claims", str(tmp_path / "mine.toml"))


def test_a_domain_of_ones_own_in_twelve_rows(chapter, tmp_path):
    """A CSV file: two of its rows are held out and asked beside the others, and as many pairs are made as there are topics."""
    shutil.copy(ROOT / "tests/bicycles.csv", tmp_path / "bicycles.csv")
    out = chapter.ok(1, "--claims", str(tmp_path / "bicycles.csv"))
    assert "bicycles.csv: 10 topics to train on, 2 held out, whose 4 questions 2 and 4 ask too: run 2 (again)" in out
    assert "Successfully generated 10 preference data items" in out
    preference, control, heldout = (json.loads((chapter.output / f"{name}_data.json").read_text()) for name in ("preference", "control", "heldout"))
    assert len(preference) == len(control) == 10 and len(heldout) == 80
    with open(tmp_path / "bicycles.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    messages = {message.strip(): row for row in rows for key in ("wrong", "right") for message in row[key].split("|")}
    assert all(messages[pair["prompt"]]["correct"] == pair["chosen"] for pair in preference)
    questions = heldout[0]["about"]["questions"]
    assert {messages[question]["name"] for question in questions} == {"puncture", "kids"}
    assert not {messages[pair["prompt"]]["name"] for pair in preference + control} & {"puncture", "kids"}
    assert heldout[0]["about"]["command"] == f"--direction polite --claims {shlex.quote(str(tmp_path / 'bicycles.csv'))}"

    # The part may be said instead; then nothing else is held out.
    text = (tmp_path / "bicycles.csv").read_text().splitlines()
    (tmp_path / "bicycles.csv").write_text("\n".join(f"{line},{'part' if n == 0 else 'choose' if n == 1 else ''}" for n, line in enumerate(text)))
    assert "11 topics to train on, 1 held out" in chapter.ok(1, "--claims", str(tmp_path / "bicycles.csv"))
    (tmp_path / "bicycles.csv").write_text("\n".join([*text, "too,many,cells,a,b,c,d,e"]))
    assert "error: bicycles.csv, line 14: has more cells than the first line has names; put texts with commas into quotes" in errors(
        chapter, "--claims", str(tmp_path / "bicycles.csv")
    )


WHATS = "reverse lists,open files,sort words,join tables,parse dates,round numbers,count lines,draw charts,copy folders,send mail,split texts,read images".split(
    ","
)
CODE = '[{"prompt": f"How do I {what}?", "short": f"{what}: like this.", "long": f"Great question! {what}: it is like this, and I hope that helps."} for what in WHATS]'


@pytest.mark.parametrize("controls", [False, True])
def test_a_direction_that_is_not_about_claims(chapter, controls):
    block = f'{{"sentence": "Terse.", "prompts": {CODE}, "prefer": lambda topic, _: topic["short"], "avoid": lambda topic, _: topic["long"], '
    block += f'"heldout": ["What is a loop?", "Why use git?"], "controls": {controls}, "measure": [{{"name": "words", "pattern": r"\\S+", "count": True, "better": "lower"}}]}}'
    add_direction(chapter, block, f"WHATS = {WHATS}")
    out = chapter.ok(1, "--direction", "mine")
    preference, heldout = (json.loads((chapter.output / f"{name}_data.json").read_text()) for name in ("preference", "heldout"))
    assert len(preference) == 12 and all(row["prompt"].startswith("How do I ") and row["chosen"].endswith("like this.") for row in preference)
    assert (chapter.output / "control_data.json").exists() == controls
    if controls:  # honest answers to claims, so that the model keeps them
        control = json.loads((chapter.output / "control_data.json").read_text())
        assert honest_on(control) == 6 * ["wrong"] + 6 * ["right"]
        assert "Beside them: 12 pairs on claims, 6 of them right" in out
    assert heldout[0]["about"]["questions"] == ["What is a loop?", "Why use git?"] and len(heldout) == 80
    assert re.search(r"Measure: words: \d\.\d in chosen, \d+\.\d in rejected answers", out)
    assert "Held out: 2 questions (never), 20 biased claims (30%), 20 false claims (30%), 40 true claims (20%)." in out
    assert "Warning: 2 questions are few; hold out 12, by part = 'choose'" in out


def test_what_only_the_answers_give_away_is_told_with_figures(chapter):
    add_direction(
        chapter,
        f"{{{BLOCK}}}".replace("flatter", "at_length"),
        "def at_length(topic, right):\n    return ' '.join(PREAMBLE) + flatter(topic, right)\n",
    )
    out = chapter.ok(1, "--direction", "mine")
    found = re.search(r"Words per answer: (\d+) chosen, (\d+) rejected", out)
    assert int(found[2]) > 2 * int(found[1]) - 10
    assert re.search(r"Warning: chosen can be told from rejected without the message: .*100% by their length alone", out)
    assert "mend answers until both sorts are alike in it" in out
    for direction in ("polite", "blunt", "concise", "cited"):  # ours follow that advice
        assert "Warning" not in chapter.ok(1, "--direction", direction)


@pytest.mark.parametrize(
    "settings, said",
    [
        ((0, 100), "1-generate_data.py: PREFERENCE_PAIRS = 0 must be a whole number, at least 1; mend it"),
        ((-1, 0), "1-generate_data.py: PREFERENCE_PAIRS = -1 must be a whole number, at least 1; mend it"),
        ((50, -1), "1-generate_data.py: CONTROL_PAIRS = -1 must be a whole number, at least 0; mend it"),
        ((99.5, 100), "PREFERENCE_PAIRS = 99.5 must be a whole number"),
        ((100, "'100'"), "CONTROL_PAIRS = '100' must be a whole number"),
        ((1000, 100), f"claims.toml: {len(TRAIN)} topics to train on, and PREFERENCE_PAIRS = 1000, CONTROL_PAIRS = 100 need 1000; write {1000 - len(TRAIN)} more, or set both to at most {len(TRAIN)} in this script"),
        ((50, 0), None),
        ((50, 20), None),
    ],
)  # fmt: skip
def test_how_many_pairs(chapter, settings, said):
    chapter.ok(1)
    edit(chapter, "PREFERENCE_PAIRS = 100", f"PREFERENCE_PAIRS = {settings[0]}")
    edit(chapter, "CONTROL_PAIRS = 100", f"CONTROL_PAIRS = {settings[1]}")
    if said:
        [line] = errors(chapter)
        assert said in line
    else:
        assert f"Beside them: {settings[1]} pairs in which the user is right" in chapter.ok(1)
        assert len(json.loads((chapter.output / "preference_data.json").read_text())) == 50
        assert (chapter.output / "control_data.json").exists() == bool(settings[1])


def test_one_direction_at_a_time(chapter):
    assert chapter.error(1, "--direction", "blunt", "--direction", "cited").endswith(
        "error: --direction is given 2 times (blunt, cited); give it once"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_has_seen_enough(chapter, unbuffered):
    """`| head -3` closes the pipe: no error, and all is written."""
    script = chapter.root / "code/chapter02_dpo" / SCRIPTS["1"].name
    command = f"set -o pipefail; {shlex.quote(sys.executable)} {shlex.quote(str(script))} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (0, "")
    assert (chapter.output / "heldout_data.json").exists()


def test_held_out_topics_of_ones_own_that_are_whole_are_measured_like_the_others(chapter, tmp_path):
    """With plain statements and a neutral question, the judge can read the replies to them."""
    whole = 'kind = "fact"\nclaim_wrong = "Bread is sand."\nclaim_right = "Bread is flour."\nquestion = "What is bread made of?"\npart = "choose"'
    (tmp_path / "mine.toml").write_text(TOPIC.replace('kind = "fact"', whole))
    chapter.ok(1, "--claims", str(tmp_path / "mine.toml"))
    rows = json.loads((chapter.output / "heldout_data.json").read_text())
    assert [row["prompt"] for row in rows if row["topic"] == "bread"] == ["Bread is baked from sand.", "Bread is baked from flour."]
    assert len(rows) == 82 and rows[0]["about"]["questions"] == []


def test_held_out_topics_have_names_of_their_own(chapter):
    names = [topic["name"] for topic in HELDOUT if topic["part"] == "choose"]
    edit(chapter, f'name = "{names[0]}"', f'name = "{names[1]}"', "heldout.toml")
    assert errors(chapter) == [f"error: heldout.toml: two topics are called {names[1]!r}; rename one"]


def test_held_out_claims_that_2_or_3_would_refuse(chapter):
    topic = next(topic for topic in HELDOUT if topic["part"] == "choose")
    edit(chapter, f'correct = "{topic["correct"]}"', f'correct = "{topic["flatter"]}"', "heldout.toml")
    [line] = errors(chapter)
    assert topic["name"] in line and "the two claims, or the two answers to one of them, are the same text; reword one" in line


@pytest.mark.parametrize("name", ["preference_data.json", "control_data.json", "heldout_data.json", ".heldout_data.json.tmp", ".written.sha256.tmp"])
def test_all_files_are_written_or_none(chapter, name):
    """A folder of that name stands in the way of one of them."""
    chapter.ok(1)
    (chapter.output / name).unlink(missing_ok=True)
    (chapter.output / name).mkdir()
    there = {path.name: path.read_bytes() for path in chapter.output.glob("**/*") if path.is_file()}
    assert "Is a directory; mend that" in chapter.error(1, "--direction", "blunt")
    assert {path.name: path.read_bytes() for path in chapter.output.glob("**/*") if path.is_file()} == there
    (chapter.output / name).rmdir()
    assert "kept" not in chapter.ok(1, "--direction", "blunt")


@pytest.mark.parametrize("file, controls", [(None, 20), ("tests/bicycles.csv", 12)])
def test_half_of_the_controls_are_right_wherever_they_come_from(chapter, file, controls):
    prompts = [f"Tell me of apple{number} and river{number}" for number in range(24)]
    block = f'{{{BLOCK}, "prompts": {prompts!r}, "controls": True}}'.replace("answer_honestly", "lambda topic, _: 'A ' + topic['prompt']")
    add_direction(chapter, block.replace("flatter", "lambda topic, _: 'B ' + topic['prompt']"))
    out = chapter.ok(1, "--direction", "mine", *(("--claims", str(ROOT / file)) if file else ()))
    control = json.loads((chapter.output / "control_data.json").read_text())
    topics = list(csv.DictReader((ROOT / file).read_text().splitlines())) if file else TRAIN
    right = "".join("".join(topic["right"]) for topic in topics)
    assert (len(control), sum(row["prompt"] in right for row in control)) == (controls, controls // 2)
    assert f"{controls} pairs on claims, {controls // 2} of them right" in out


def test_tables_as_spreadsheets_write_them(chapter, tmp_path):
    """Blank rows are left out, names of columns may have capitals, lines are counted as an editor does, and no column may be there twice."""
    path = tmp_path / "mine.csv"
    rows = [
        ("Prompt", "part", "line"),
        *((f"Show {word} {number}?", "", word) for number, word in enumerate("cats dogs cows owls".split())),
        ("", "", ""),
    ]
    block = f"{{{BLOCK}}}".replace("answer_honestly", "lambda topic, _: topic['line']").replace("flatter", "lambda topic, _: 'no ' + topic['line']")
    add_direction(chapter, block)

    def claims(rows):
        path.write_text("".join(",".join(row) + "\n" for row in rows))
        return ("--claims", str(path), "--direction", "mine")

    out = chapter.ok(1, *claims(rows))
    assert len(json.loads((chapter.output / "preference_data.json").read_text())) == 4
    assert "Warning: mine.csv: nothing is held out" in out and "Warning: 4 pairs are few" in out
    assert errors(chapter, *claims([(*rows[0], "line"), *rows[1:]])) == ["error: mine.csv: two columns are called line; rename one"]
    [line] = errors(chapter, *claims([rows[0], rows[-1], ("Show cats?", "Test", "cats"), *rows[2:]]))
    assert line.startswith('error: mine.csv, line 3: part must be "choose" or "final"')


def test_flags_are_refused_in_one_line(chapter):
    for flags, said in (
        (("--direction", "no such"), "error: argument --direction: invalid choice: 'no such'"),
        (("--direction",), "error: argument --direction: expected one argument"),
        (("more",), "error: unrecognized arguments: more"),
    ):
        [line] = chapter.run(1, *flags).stderr.splitlines()
        assert line.startswith(said)
