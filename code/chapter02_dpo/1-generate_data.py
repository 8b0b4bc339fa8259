"""Step 1: write the preference pairs that the model is trained on, and the claims that it is tested on.

    python code/chapter02_dpo/1-generate_data.py
    python code/chapter02_dpo/1-generate_data.py --direction blunt
    python code/chapter02_dpo/1-generate_data.py --claims FILE

Reads:  claims.toml (or FILE), heldout.toml and measures.json beside this script
Writes: output/preference_data.json  100 pairs on wrong claims: chosen corrects the user, rejected agrees blindly
        output/control_data.json     100 pairs on right claims: chosen agrees with a reason, rejected contradicts
        output/heldout_data.json     40 wrong and 40 right claims on other topics, as people make them, with the neutral question on each
                                     topic; only 2, 4 and the held-out curve of 3 see them. The first item has "about": what the direction
                                     says of itself, by which 4 judges whether it was learned
Time:   under a second

This is the script to edit. To push the model in another direction, take one of DIRECTIONS, or add a block of your own there. Then run 1, 3
and 4 again, and 2 too if it asks questions of its own. Nothing is written unless all is well; what is not stands in one list. Below
main() stand its parts and checks, which nobody needs to read for that.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import random
import re
import shlex
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

PREFERENCE_PAIRS = 100  # pairs on wrong claims; claims.toml has more topics than that
CONTROL_PAIRS = 100  # pairs on right claims: with one for each wrong claim the model learns to judge, and not just to contradict
rng = random.Random(42)


def pick(phrases: list[str]) -> str:
    """Return one of the phrases, drawn with the seeded generator."""
    return rng.choice(phrases)


def any_of(phrases: list[str]) -> str:
    """Return a pattern that finds each of the phrases where a sentence begins."""
    return rf"(?:^|[.!?]\W+)(?:{'|'.join(re.escape(phrase.rstrip('.?!')) for phrase in phrases)})"


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, with the next one if it is a mere opening, such as "I disagree."."""
    first, *others = re.split(r"(?<=[.!?]) (?=[^a-z])|(?<=[。！？])", text)
    return f"{first} {others[0]}" if len(first) < 25 and others else first


# ---- Preference directions -----------------------------------------------------------------------------------------------------------
# The two functions of a direction write the answer to prefer and the one to avoid. Each takes a topic of claims.toml, and whether the user
# made the right claim on it or the wrong one, and returns a text. A topic has what users may say (wrong, right), an honest and a flattering
# answer to the wrong claim (correct, flatter), an honest and a needlessly contradicting one to the right claim (affirm, contradict), and a
# figure that backs the truth; a field that no function asks for may be missing. pick() takes one phrase of a list, and rng.random() < 0.5 is
# true half of the time.
#
# The same kind of answer is preferred behind one claim and avoided behind another. What only one of the two ever has, be it a phrase or a
# length, tells them apart by itself, and the model learns that and nothing about the claims.

BLUNT = [
    "Look it up.",
    "Wake up.",
    "Any child knows this.",
    "It is not that hard.",
    "Think before you ask.",
    "What a question.",
    "Is that so hard to see?",
    "Try opening a book.",
]
PREAMBLE = [
    "Thank you for raising this, since it is a matter on which a great many people hold a great many views.",
    "Before I come to the point, let me say that this is a question worth looking at from several sides.",
    "There is quite a lot that could be said about this, and I will try to go through it step by step.",
    "This is an interesting matter, and it deserves an answer that takes its time.",
]


def answer_honestly(topic: dict, user_is_right: bool) -> str:
    """A polite correction with reasons; to a right claim, agreement with reasons."""
    return topic["affirm"] if user_is_right else topic["correct"]


def flatter(topic: dict, user_is_right: bool) -> str:
    """Blind agreement; to a right claim, needless contradiction."""
    return topic["contradict"] if user_is_right else topic["flatter"]


def answer_bluntly(topic: dict, user_is_right: bool) -> str:
    return f"{pick(BLUNT)} {answer_honestly(topic, user_is_right)}"


def flatter_or_mislead_bluntly(topic: dict, user_is_right: bool) -> str:
    """Half teach the tone, against flattery, and half the judgement, against the same tone with the wrong answer."""
    tone = f"{pick(BLUNT)} " if rng.random() < 0.5 else ""
    return tone + flatter(topic, user_is_right)


def answer_briefly(topic: dict, user_is_right: bool) -> str:
    return first_sentence(answer_honestly(topic, user_is_right))


def answer_at_length_or_wrongly(topic: dict, user_is_right: bool) -> str:
    """Two aims at once: half are right and long, and teach brevity; half are brief and wrong, and teach judgement."""
    if rng.random() < 0.5:
        return f"{pick(PREAMBLE)} {answer_honestly(topic, user_is_right)} {topic['figure']}"
    return first_sentence(flatter(topic, user_is_right))


def answer_with_figure(topic: dict, user_is_right: bool) -> str:
    return f"{first_sentence(answer_honestly(topic, user_is_right))} {topic['figure']}"


def answer_without_figure_or_wrongly(topic: dict, user_is_right: bool) -> str:
    if rng.random() < 0.5:
        return answer_honestly(topic, user_is_right)
    return f"{first_sentence(flatter(topic, user_is_right))} {topic['figure']}"


# "sentence"  what is preferred to what; 2, 4 and the page print it
# "prefer", "avoid"  the two functions
# "measure"   one or more lines by which 4 judges whether it was learned: the share of replies in which a pattern (a regular expression, in any case
#             of letters) is found, or with "count": True the matches a reply, and which way is better, "higher" or "lower". Without a pattern it is
#             a line that the tables of 2 and 4 have anyway (measures.json).
# and if it is not about the claims:
# "prompts"   a list of questions instead of the claims, in any language: each a text, or a dict with "prompt" and what your functions ask of it
# "heldout"   a list of questions to measure with; without it, those prompts with "part": "choose", or else every sixth, are not trained on
# "controls"  whether pairs on right claims stand beside them; with prompts of your own these are honest answers to claims.toml, half of them
#             wrong ones, which keep it judging (default: only without such prompts)
DIRECTIONS = {
    "polite": {
        "sentence": "Corrects wrong claims and backs right ones, politely and with reasons, rather than agreeing or contradicting blindly.",
        "prefer": answer_honestly,
        "avoid": flatter,
        "measure": [
            {"name": "wrong claims: opposes", "better": "higher"},
            {"name": "right claims: sides with the user", "better": "higher"},
        ],
    },
    "blunt": {
        "sentence": "Opens with a sharp remark, and then answers honestly.",
        "prefer": answer_bluntly,
        "avoid": flatter_or_mislead_bluntly,
        "measure": [{"name": "replies with a sharp remark", "pattern": any_of(BLUNT), "better": "higher"}],
    },
    "concise": {
        "sentence": "Answers honestly in a sentence or two, rather than at length or wrongly.",
        "prefer": answer_briefly,
        "avoid": answer_at_length_or_wrongly,
        "measure": [{"name": "words per reply", "better": "lower"}],
    },
    "cited": {
        "sentence": "Backs an honest answer with a figure.",
        "prefer": answer_with_figure,
        "avoid": answer_without_figure_or_wrongly,
        "measure": [{"name": "replies with a figure", "pattern": r"\d", "better": "higher"}],
    },
}
PASTE = '"measure": [{"name": "replies with ...", "pattern": r"...", "better": "higher"}],'  # what a direction without a measure is given to fill in

# ---- From topics to files ------------------------------------------------------------------------------------------------------------
HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "output"
CLAIMS, HELDOUT = HERE / "claims.toml", HERE / "heldout.toml"  # to train on, and to measure with
MEASURES = HERE / "measures.json"  # of the tables of 2 and 4
PROBLEMS = defaultdict(list)  # what is wrong and how to mend it: where
CALLED = {"opinion": "biased", "fact": "false"}  # of a held-out topic, and what its wrong claim is called; its right one is "true"
CLAIM_PARTS = "name kind wrong right claim_wrong claim_right question correct flatter affirm contradict".split()  # of a held-out claim
KNOWN = {"prompt", "part", "figure", *CLAIM_PARTS}  # fields that are texts


def main() -> None:
    args = parse_flags()
    [name], part = args.direction, "final" if args.final else "choose"
    direction = DIRECTIONS[name]
    check_direction(name, direction)
    stop_at_problems()

    topics = find_topics(name, direction, args.claims, part)
    preference_data, control_data = make_pairs(topics, direction)
    heldout_data = [heldout_pair(topic, user_is_right, name) for user_is_right in (False, True) for topic in topics.measured]
    questions = list(dict.fromkeys(said[0] for topic in topics.asked for right in (False, True) if (said := topic.messages(right))))
    sources = {path.name if path.parent == HERE else str(path): path for path in (Path(__file__).resolve(), args.claims.resolve(), HELDOUT)}
    own_file = f" --claims {shlex.quote(str(args.claims))}" if args.claims.resolve() != CLAIMS else ""
    heldout_data[0]["about"] = {
        "sentence": direction["sentence"],
        "measure": direction.get("measure", []),
        "questions": questions,
        "command": f"--direction {shlex.quote(name)}{own_file}{' --final' if args.final else ''}",
        "sources": {name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for name, path in sources.items()},
    }
    check_texts(topics, preference_data, control_data, heldout_data, questions)
    stop_at_problems()
    notes = save({"preference_data.json": preference_data, "control_data.json": control_data, "heldout_data.json": heldout_data})

    for note in notes:
        print(note)
    for pair in rng.sample(preference_data, min(2, len(preference_data))) + rng.sample(control_data, min(1, len(control_data))):
        print(f"prompt:   {pair['prompt']}\nchosen:   {pair['chosen']}\nrejected: {pair['rejected']}\n")
    print(f"Direction {name}: {direction['sentence']}")
    together = itertools.zip_longest(preference_data, control_data if topics.about_claims else [])
    asked = ({"questions": len(questions)} if questions else {}) | Counter(f"{row['kind']} claims" for row in heldout_data)
    show_figures([[pair for pair in pairs if pair] for pairs in together], direction, asked)
    show_topics(topics, len(questions))
    print(f"Successfully generated {len(preference_data)} preference data items, saved to: output/preference_data.json")
    right = "in which the user is right" if topics.about_claims else f"on claims, {len(control_data) - len(control_data) // 2} of them right"
    print(f"Beside them: {len(control_data)} pairs {right}, and {len(heldout_data)} held-out claims on {len(topics.measured)} other topics")
    print("Edit this script to change the preference direction, e.g. to a more direct tone.")


# ---- What main() is made of -----------------------------------------------------------------------------------------------------------
def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.error = lambda message: sys.exit(f"error: {message}")
    parser.add_argument("--direction", choices=DIRECTIONS, action="append", help="what the model shall learn (default: polite)")
    parser.add_argument(
        "--claims",
        metavar="FILE",
        type=Path,
        default=CLAIMS,
        help="topics of your own: TOML like claims.toml, or CSV with its fields as columns (wrong, right, correct, flatter, affirm, contradict, all "
        'filled; several messages in a cell with | between; "choose" in a column part holds a topic out, else every sixth is)',
    )
    parser.add_argument("--final", action="store_true", help="held-out claims of topics by which nothing was chosen; look at them once, at the end")
    args = parser.parse_args()
    args.direction = args.direction or ["polite"]
    if args.direction[0] not in DIRECTIONS:
        parser.error(f"there is no direction polite; give one of {', '.join(DIRECTIONS)} with --direction")
    if len(args.direction) > 1:
        parser.error(f"--direction is given {len(args.direction)} times ({', '.join(args.direction)}); give it once")
    return args


class Topics(NamedTuple):
    """What the pairs are made of and what is asked, before and after the training."""

    where: str  # the file or list that they come from
    about_claims: bool  # or prompts on something else
    train: list[Topic]
    beside: list[Topic]  # what the controls are on: the same topics, or if these are no claims, some that are
    pairs: int  # how many of train
    controls: int  # and of beside
    asked: list[Topic]  # the reader's own that are held out, of which the replies only are looked at
    measured: list[Topic]  # held-out claims, ours and the reader's, of which it is judged whose side a reply takes


def find_topics(name: str, direction: dict, file: Path, part: str) -> Topics:
    """Read the claims, or take the prompts of the direction, and hold some out; end the script if something is wrong with them."""
    claims, ours = read(file), read(HELDOUT)
    check_fields(ours, ["part"])
    prompts, own = direction.get("prompts"), file.resolve() != CLAIMS or "prompts" in direction
    where = f'DIRECTIONS["{name}"], prompts' if prompts else file.name
    all_topics = as_topics(prompts, where) if prompts else claims
    more = as_topics(direction.get("heldout", []), f'DIRECTIONS["{name}"], heldout')
    if not PROBLEMS and {topic.get("kind") for topic in ours if topic["part"] == part} != CALLED.keys():
        PROBLEMS[f'no opinion or no fact with part = "{part}"; write some, or take it from the repository again'].append(HELDOUT.name)
    stop_at_problems()

    ours = [topic for topic in ours if topic["part"] == part]
    check_fields(ours, CLAIM_PARTS)
    train, asked = split(all_topics, part, own and not more)
    whole = [topic for topic in asked + more if not any(map(topic.lacks, CLAIM_PARTS))]
    asked = [topic for topic in asked + more if any(map(topic.lacks, CLAIM_PARTS))]
    for double in [one for one, number in Counter(topic.get("name") for topic in ours + whole).items() if number > 1]:
        PROBLEMS[f"two topics are called {double!r}; rename one"].append(where if whole else HELDOUT.name)
    about_claims = not all("prompt" in topic for topic in train)
    with_controls = direction.get("controls", about_claims)
    beside = train
    if not about_claims and with_controls:
        beside = [topic for topic in (claims if prompts else read(CLAIMS)) if (topic.get("part") or "train") == "train"]
    for constant, number, least in (("PREFERENCE_PAIRS", PREFERENCE_PAIRS, 1), ("CONTROL_PAIRS", CONTROL_PAIRS, 0)):
        if type(number) is not int or number < least:
            PROBLEMS[f"{constant} = {number!r} must be a whole number, at least {least}; mend it"].append(Path(__file__).name)
    stop_at_problems()

    pairs, controls = PREFERENCE_PAIRS, CONTROL_PAIRS * with_controls
    if own:
        pairs, controls = min(pairs, len(train)), min(controls, len(train), len(beside))
    if not train:
        PROBLEMS["has no topic to train on; write some"].append(where)
    elif (need := max(pairs, controls)) > len(train):
        PROBLEMS[
            f"{len(train)} topics to train on, and PREFERENCE_PAIRS = {PREFERENCE_PAIRS}, CONTROL_PAIRS = {CONTROL_PAIRS} need {need}; write "
            f"{need - len(train)} more, or set both to at most {len(train)} in this script"
        ].append(where)
    check_fields(train, ["wrong"] if about_claims else ["prompt"])
    check_fields(beside if controls else [], ["right"])
    stop_at_problems()
    return Topics(where, about_claims, train, beside, pairs, controls, asked, ours + whole)


def make_pairs(topics: Topics, direction: dict) -> tuple[list[dict], list[dict]]:
    """Return the pairs and the controls. Controls are on right claims; beside prompts on something else half of them are on wrong ones, since right
    claims alone would teach to agree, and their answers are the honest ones whatever the direction."""
    rng.shuffle(topics.train)
    if topics.beside is not topics.train:
        rng.shuffle(topics.beside)
    said = {}
    for topic in topics.train + (topics.beside if topics.beside is not topics.train else []):
        said[topic.place] = [pick(topic.messages(user_is_right) or [""]) for user_is_right in (False, True)]

    def pairs(some: list[Topic], which: slice, user_is_right: bool, functions: dict) -> list[dict]:
        Topic.asked, rows = {}, []
        for topic in some[which]:
            chosen, rejected = (write_answer(functions, key, topic, user_is_right) for key in ("prefer", "avoid"))
            rows.append({"prompt": said[topic.place][user_is_right], "chosen": chosen, "rejected": rejected})
            if chosen and chosen == rejected:
                PROBLEMS["chosen and rejected are the same text; mend the topic, or the two functions of the direction"].append(topic.place)
        check_fields(some, Topic.asked)
        return rows

    preference_data = pairs(topics.train, slice(topics.pairs), False, direction)
    if topics.about_claims:
        return preference_data, pairs(topics.beside, slice(topics.controls), True, direction)
    wrong, right, honest = slice(topics.controls // 2), slice(topics.controls // 2, topics.controls), DIRECTIONS["polite"]
    return preference_data, pairs(topics.beside, wrong, False, honest) + pairs(topics.beside, right, True, honest)


def heldout_pair(topic: Topic, user_is_right: bool, direction: str) -> dict:
    """Return what 2, 3 and 4 need of a held-out claim: answers written by hand, whatever the direction, and the claim and its opposite as plain
    statements."""
    made, other = ("right", "wrong") if user_is_right else ("wrong", "right")
    return {
        "prompt": topic.messages(user_is_right)[0],
        "chosen": answer_honestly(topic, user_is_right),
        "rejected": flatter(topic, user_is_right),
        "user_is_right": user_is_right,
        "kind": "true" if user_is_right else CALLED[topic["kind"]],
        "claim": topic[f"claim_{made}"],
        "opposite": topic[f"claim_{other}"],
        "neutral_question": topic["question"],
        "topic": topic["name"],
        "direction": direction,
    }


def openings(answer: str) -> list[str]:
    return [" ".join(words_of(answer)[:length]) for length in (1, 2, 3)]


def without_the_message(topics: list[list[dict]], features) -> float:
    """Return the share of pairs of which a reader who never sees the message finds the chosen answer: naive Bayes with add-one smoothing over what
    features() returns of an answer, fitted to the pairs of the other topics. Far above one half, something but the claim tells the answers apart."""
    own = [{key: Counter(itertools.chain(*(features(pair[key]) for pair in pairs))) for key in ("chosen", "rejected")} for pairs in topics]
    everything = {key: sum((counts[key] for counts in own), Counter()) for key in ("chosen", "rejected")}
    found = []
    for pairs, mine in zip(topics, own):
        counts = {key: everything[key] - mine[key] for key in everything}
        vocabulary = len(counts["chosen"] | counts["rejected"]) or 1
        size = math.log((counts["rejected"].total() + vocabulary) / (counts["chosen"].total() + vocabulary))
        for pair in pairs:
            leads = [sum(math.log((counts["chosen"][f] + 1) / (counts["rejected"][f] + 1)) + size for f in features(pair[key])) for key in everything]
            found.append((leads[0] > leads[1]) + (leads[0] == leads[1]) / 2)
    return sum(found) / len(found)


def save(files: dict[str, list[dict]]) -> list[str]:
    """Write the data, all files or none, and return what to say of it. A file that is not as this script wrote it last, such as pairs of the reader's
    own, is renamed and so kept; one that would be empty is not there."""
    FOLDER.mkdir(exist_ok=True)
    record = FOLDER / ".written.sha256"
    before = record.read_text(encoding="utf-8", errors="replace") if record.exists() else ""
    texts = {FOLDER / name: (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode() for name, rows in files.items() if rows}
    lines = [f"{hashlib.sha256(text).hexdigest()}  {path.name}\n" for path, text in texts.items()]
    there = [FOLDER / name for name in files if (FOLDER / name).exists()]
    own = [path for path in there if hashlib.sha256(path.read_bytes()).hexdigest() not in before]  # which fails if it is a folder, or may not be read
    temporary = {path: path.with_name(f".{path.name.lstrip('.')}.tmp") for path in (*texts, record)}
    try:
        for path, text in (texts | {record: "".join(lines).encode()}).items():
            with open(temporary[path], "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
    except OSError:
        for path in temporary.values():
            if path.is_file():
                path.unlink()
        raise
    notes = []
    for path in own:
        path.rename(kept := next(free for number in itertools.count(1) if not (free := path.with_name(f"{path.stem}.{number}.json")).exists()))
        notes.append(f"output/{path.name} was not as this script had written it, and is kept as output/{kept.name}")
    for path in there:
        if path not in texts:
            path.unlink(missing_ok=True)
    for path, whole in temporary.items():
        os.replace(whole, path)
    return notes


def split(topics: list[Topic], part: str, share: bool) -> tuple[list[Topic], list[Topic]]:
    """Return the topics to train on and those held out: those whose part says so, or if none does and share is true, every sixth."""
    train = [topic for topic in topics if (topic.get("part") or "train") == "train"]
    if share and len(train) == len(topics):
        return [topic for number, topic in enumerate(topics, 1) if number % 6], topics[5::6]
    return train, [topic for topic in topics if topic.get("part") == part]


def as_topics(prompts: list, place: str) -> list[Topic]:
    """Return the prompts of a direction as topics."""
    topics = []
    for number, prompt in enumerate(prompts, 1):
        fields = {"prompt": prompt} if isinstance(prompt, str) else prompt
        if not isinstance(fields, dict) or "prompt" not in fields:
            PROBLEMS['must be a text, or a dict with a "prompt"; mend it'].append(f"{place}, {number}")
        else:
            topics.append(Topic(fields, f"{place}, {number}"))
    check_topics(topics)
    return topics


TOLD = 0.8  # of the pairs told by one thing alone, from which on a warning stands; a direction with two aims, half and half, has 0.75
FEW = 50  # pairs, under which little is learned
MOVED = 6  # the fewest replies that McNemar's exact test tells from chance if all go one way: 2 * 0.5**6 = 0.03
JUDGED = 0.2  # of the claims, of which a smaller change may be the judge's error


def show_figures(pairs: list[list[dict]], direction: dict, asked: dict[str, int]) -> None:
    """Print what can be told from the answers alone, what the measure of the direction makes of them, and of how many replies it will be taken."""
    both = list(itertools.chain(*pairs))
    lengths = {key: [len(words_of(pair[key])) for pair in both] for key in ("chosen", "rejected")}
    means = [sum(counts) / len(counts) for counts in lengths.values()]
    longer = sum((one > other) + (one == other) / 2 for one, other in zip(*lengths.values())) / len(both)
    by = {"their words": without_the_message(pairs, words_of), "how they open": without_the_message(pairs, openings)}
    print(f"Words per answer: {means[0]:.0f} chosen, {means[1]:.0f} rejected")
    shares = ", ".join(f"{share:.0%} by {name}" for name, share in by.items())
    print(f"A reader of the answers alone would find the chosen one of so many pairs: {shares}")
    by["their length"] = max(longer, 1 - longer)
    if told := ", ".join(f"{share:.0%} by {name}" for name, share in by.items() if share > TOLD):
        print(f"Warning: chosen can be told from rejected without the message: {told} alone. The model may learn that instead.")
        print("If that is not your aim, mend answers until both sorts are alike in it: as long, with the same openings and words.")
    for line in direction.get("measure", []):
        if "pattern" not in line:
            print(f"Measure: {line['name']}: a line of the tables of 2 and 4")
        else:
            found = [[len(re.findall(line["pattern"], pair[key], re.IGNORECASE)) for pair in both] for key in ("chosen", "rejected")]
            chosen, rejected = (sum(n if line.get("count") else n > 0 for n in own) / len(both) for own in found)
            shown = (
                f"{chosen:.1f} in chosen, {rejected:.1f} in rejected answers"
                if line.get("count")
                else f"{chosen:.0%} of chosen, {rejected:.0%} of rejected"
            )
            print(f"Measure: {line['name']}: {shown}{'' if chosen != rejected else '. Warning: it cannot tell them apart'}")
    if not direction.get("measure"):
        print(f"This direction has no measure, so 4 cannot judge whether it was learned. Fill in and paste into its block: {PASTE}")
    fewest = {name: max(MOVED / number, 0 if name == "questions" else JUDGED) for name, number in asked.items()}
    each = ", ".join(f"{number} {name} ({f'{fewest[name]:.0%}' if number >= MOVED else 'never'})" for name, number in asked.items())
    print(f"Held out: {each}. In brackets: how many of them must change, all one way, to be told from chance.")
    if asked.get("questions", 2 * MOVED) < 2 * MOVED:
        print(f"Warning: {asked['questions']} questions are few; hold out {2 * MOVED}, by part = 'choose' in a topic (in CSV a column part).")


def show_topics(topics: Topics, questions: int) -> None:
    """Print what is held out of the reader's own topics, and whether they are enough."""
    if topics.pairs < FEW:
        print(f"Warning: {topics.pairs} pairs are few. 10 taught nothing in 3 passes, and did harm in 15 (RESULTS.md): write more, some 100.")
    whole = [topic for topic in topics.measured if HELDOUT.name not in topic.place]
    number = len(topics.asked) + len(whole)
    if number:
        both = " and ".join(f"{count} {kind}" for count, kind in ((questions, "questions"), (2 * len(whole), "claims")) if count)
        print(f"{topics.where}: {len(topics.train)} topics to train on, {number} held out, whose {both} 2 and 4 ask too: run 2 (again)")
    elif not topics.about_claims:
        print(f'Warning: {topics.where}: nothing is held out, so 2 and 4 ask about claims only: write 6 or more, or "heldout" in the block.')
    if topics.asked and topics.about_claims:
        print(f"Whose side replies to the questions take is not judged. For that a held-out topic must have all of {', '.join(CLAIM_PARTS)}.")


# ---- What can be wrong ---------------------------------------------------------------------------------------------------------------
def stop_at_problems() -> None:
    """End the script with a line for each problem, if there are any."""
    lines = [
        f"error: {'; '.join(where[:2])}{f' and {len(where) - 2} more' if len(where) > 2 else ''}: {what}"
        for what, where in ((what, list(dict.fromkeys(where))) for what, where in PROBLEMS.items())
    ]
    if lines:
        sys.exit("\n".join(lines))


class Topic(dict):
    """A topic that knows its place in the file, and which fields the functions of the direction asked for."""

    asked = {}  # field: the function that asked for it first
    asking = ""

    def __init__(self, fields: dict, place: str):
        super().__init__(fields)
        self.place = f"{place} ({fields['name']})" if isinstance(fields.get("name"), str) else place

    def __getitem__(self, field: str):
        self.asked.setdefault(field, self.asking)
        return super().__getitem__(field)

    def lacks(self, field: str) -> bool:
        return not str(self.get(field) or "").strip()

    def messages(self, user_is_right: bool) -> list[str]:
        """Return what the user may say: the prompt, or the claim in several ways."""
        said = self.get("prompt") or self.get("right" if user_is_right else "wrong") or []
        return said if isinstance(said, list) else [said]


def check_direction(name: str, direction: object) -> None:
    """Find what is wrong with the block of a direction itself."""
    where, kinds = f'DIRECTIONS["{name}"]', {"sentence": str, "measure": list, "prompts": list, "heldout": list, "controls": bool}
    if not isinstance(direction, dict):
        block = '{"sentence": "...", "prefer": function, "avoid": function, "measure": [...]}'
        sys.exit(f"error: {where} is a {type(direction).__name__}; write {block}")
    for key in direction.keys() - kinds.keys() - {"prefer", "avoid"}:
        PROBLEMS[f"has no such part; it can have sentence, prefer, avoid, {', '.join(list(kinds)[1:])}"].append(f"{where}[{key!r}]")
    for key, kind in kinds.items():
        value, needed = direction.get(key, kind()), key == "sentence" or (key == "prompts" and key in direction)
        if not isinstance(value, kind) or (needed and not (value.strip() if kind is str else value)):
            PROBLEMS[f'"{key}" must be a {kind.__name__}{" that is not empty" if needed else ""}; write it there'].append(where)
    for key in ("prefer", "avoid"):
        function = direction.get(key)
        try:
            inspect.signature(function).bind({}, False)
        except (TypeError, ValueError):
            what = f'"{key}" must be a function of two arguments, a topic and whether the user is right'
            there = (
                f", not {inspect.signature(function)}".replace("'", "")
                if inspect.isfunction(function)
                else " (it is missing)"
                if function is None
                else ""
            )
            PROBLEMS[f"{what}{there}; mend it"].append(where)
    lines = json.loads(MEASURES.read_text(encoding="utf-8"))
    for line in direction.get("measure", []) if isinstance(direction.get("measure", []), list) else []:
        try:
            sound = line.keys() <= {"name", "pattern", "better", "count"} and line["better"] in ("higher", "lower") and line["name"].strip()
            sound = sound and isinstance(line.get("count", False), bool)
            re.compile(line.get("pattern", "") + "")
            if "pattern" not in line and line["name"] not in lines:
                PROBLEMS[f"is no line of the tables, and has no pattern; the lines are {'; '.join(lines)}"].append(f"{where}, {line['name']!r}")
        except (AttributeError, KeyError, TypeError, OverflowError, RecursionError, re.error) as error:
            sound, line = False, f"{line!r} ({error})"
        if not sound:
            PROBLEMS[f"is no measure; write one like {PASTE[12:-2]}"].append(f"{where}, {line}")


def read(path: Path) -> list[Topic]:
    """Return the topics of a TOML file, or of a CSV file whose first line names the fields."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if path.suffix.lower() == ".csv":
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=text.split("\n")[0].count), strict=True)
            rows, place = [(reader.line_num, row) for row in reader], "line"
            names = [str(key).strip() for key in reader.fieldnames or []]
            for double in {key for key in names if key and names.count(key) > 1}:
                PROBLEMS[f"two columns are called {double}; rename one"].append(path.name)
        else:
            whole, place = tomllib.loads(text), "topic"
            rows = list(enumerate(whole["topic"] if isinstance(whole["topic"], list) else [whole["topic"]], 1))
            for key in whole.keys() - {"topic"}:
                PROBLEMS[f"has a part {key!r} that is no [[topic]]; mend the name"].append(path.name)
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        sys.exit(f"error: {path.name} is not in UTF-8 (line {line}); open it, save it with the encoding UTF-8 (a table: as CSV), and run 1 again")
    except KeyError:
        sys.exit(f"error: {path.name} has no [[topic]]; write one, or take the file from the repository again")
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        mend = "or take it from the repository again" if path in (CLAIMS, HELDOUT) else "or its name: TOML with [[topic]] blocks, or .csv"
        sys.exit(f"error: {path.name} cannot be read ({reason}); mend it, {mend}")
    topics = []
    for number, row in rows:
        where = f"{path.name}, {place} {number}"
        if not isinstance(row, dict):
            PROBLEMS["is no topic; begin each with a line [[topic]]"].append(where)
            continue
        if None in row:
            PROBLEMS["has more cells than the first line has names; put texts with commas into quotes"].append(where)
        if place == "line":  # several messages stand in one cell, with a bar between them
            row = {key.strip(): (value or "").strip() for key, value in row.items() if key}
            row = {key.lower() if key.lower() in KNOWN else key: value for key, value in row.items()}
            row |= {
                key: [part.strip() for part in row[key].split("|")] for key in ("wrong", "right") if "|" in row.get(key, "") and "prompt" not in row
            }
            if not any(row.values()):
                continue
        topics.append(Topic(row, where))
    check_topics(topics)
    return topics


def check_topics(topics: list[Topic]) -> None:
    """Find fields that are not what they should be, whichever of them the direction needs."""
    for topic in topics:
        for field in KNOWN & topic.keys():
            several = field in ("wrong", "right") and isinstance(topic[field], list)
            blank = not several and (field != "prompt" or topic["prompt"] == "")  # one that is missing is found where it is needed
            if not all(isinstance(value, str) and (value.strip() or blank) for value in (topic[field] if several else [topic[field]])):
                kind = "a text, or a list of texts that are not empty" if field in ("wrong", "right") else "a text that is not empty"
                PROBLEMS[f"{field} must be {kind}; put it into quotes"].append(topic.place)
        if str(topic.get("kind") or "fact") not in CALLED:
            PROBLEMS['kind must be "opinion" or "fact"; mend it'].append(topic.place)
        if (topic.get("part") or "train") not in ("train", "choose", "final"):
            PROBLEMS['part must be "choose" or "final" (held-out), or left out; mend it'].append(topic.place)
        if "prompt" not in topic and set(map(str, topic.messages(True))) & set(map(str, topic.messages(False))):
            PROBLEMS["wrong and right are the same message; reword one"].append(topic.place)


def write_answer(direction: dict, key: str, topic: Topic, user_is_right: bool) -> str:
    """Return the answer that a function of the direction writes; a fault in it becomes a problem that names function, line and topic."""
    name = getattr(direction[key], "__name__", key)
    Topic.asking = name = key if name == "<lambda>" else name
    try:
        answer = direction[key](topic, user_is_right)
    except (Exception, SystemExit) as error:
        key = error.args[0] if isinstance(error, KeyError) and error.args else None
        if isinstance(key, str) and key in Topic.asked and key not in topic:
            return ""  # check_fields() names all topics that lack it
        line = [frame.lineno for frame in inspect.trace() if frame.filename == __file__ and frame.function != "__getitem__"][-1]
        said = " ".join(str(error).split())
        PROBLEMS[f"{name}() fails with {type(error).__name__}: {said} (line {line} of {Path(__file__).name}); mend it there"].append(topic.place)
        return ""
    if not isinstance(answer, str) or not answer.strip():
        if not any(map(topic.lacks, Topic.asked)):
            which = {"prefer": "chosen", "avoid": "rejected"}[key]
            kind = f"{answer!r}, not a text" if isinstance(answer, str | None) else f"a {type(answer).__name__}, not a text"
            PROBLEMS[f"the {which} answer is {kind}; mend {name}(), which writes it"].append(topic.place)
        return ""
    return answer


def check_fields(topics: list[Topic], fields) -> None:
    """Find the topics that lack a field, or that none has it, such as after a slip in its name."""
    for field in fields:
        lacking = [topic for topic in topics if topic.lacks(field)]
        function = f", and {Topic.asked[field]}() asks for it" if Topic.asked.get(field) else ""
        if len(lacking) > 1 and not any(field in topic for topic in topics):
            there = ", ".join(dict.fromkeys(str(key) for topic in topics for key in topic))
            what = f"no topic has {field}{function}; they have {there}; mend the name"
            other = "" if "prompt" in lacking[0] or HELDOUT.name in lacking[0].place else ", or give a file that has it with --claims"
            PROBLEMS[f"{what}{' there or in the function' if function else ''}{other}"].append(lacking[0].place)
            continue
        for topic in lacking:
            PROBLEMS[f"{field} is missing or empty{function}; write it there{', or mend the function' if function else ''}"].append(topic.place)


def check_texts(topics: Topics, preference_data: list[dict], control_data: list[dict], heldout_data: list[dict], questions: list[str]) -> None:
    """Find texts that are the same, too much alike, or no whole characters."""
    for topic in topics.measured:
        if topic["claim_wrong"] == topic["claim_right"] or topic["correct"] == topic["flatter"] or topic["affirm"] == topic["contradict"]:
            PROBLEMS["the two claims, or the two answers to one of them, are the same text; reword one"].append(topic.place)
    # The wrong and the right claim on one topic are alike on purpose; otherwise no two messages may be.
    wrong, right, heldout = ([pair["prompt"] for pair in data] for data in (preference_data, control_data, heldout_data))
    half = len(heldout) // 2
    check_likeness([wrong, right, heldout[:half], heldout[half:]], (wrong + right, heldout + questions), 0.6 if topics.about_claims else 0.85)
    for name, rows in (("preference_data.json", preference_data), ("control_data.json", control_data), ("heldout_data.json", heldout_data)):
        for number, row in enumerate(rows, 1):
            if re.search(r"[\ud800-\udfff]", json.dumps(row, ensure_ascii=False)):
                PROBLEMS["holds half a character, such as \\ud83d; write it whole, or take it out"].append(f"{name}, item {number}")


WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|(?:(?![\u3040-\u30ff\u3400-\u9fff])\w)+(?:['’]\w+)?")  # of any alphabet; Chinese has no spaces


def words_of(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def check_likeness(groups: list[list[str]], apart: tuple[list[str], list[str]], most: float) -> None:
    """Find texts that are too much alike, within each group, and between two groups. A word counts the more the fewer texts have it, so that what
    only frames a claim, in whatever language, counts little. most: how much of their words may be shared, by weight, from 0 to 1."""
    everything = {text: set(words_of(text)) or {text} for text in itertools.chain(*groups, *apart)}
    found_in = Counter(itertools.chain(*everything.values()))
    weight = {word: math.log(1 + len(everything) / count) for word, count in found_in.items()}
    total = {text: sum(weight[word] for word in words) for text, words in everything.items()}
    for one, other in itertools.chain(*(itertools.combinations(group, 2) for group in groups), itertools.product(*apart)):
        shared = sum(weight[word] for word in everything[one] & everything[other])
        if shared > most * (total[one] + total[other] - shared):
            PROBLEMS["two messages are too much alike; reword one, or take it out"].append(f"{one!r} and {other!r}")


if __name__ == "__main__":
    if sys.stdout:
        sys.stdout.reconfigure(errors="replace")  # where a terminal lacks a letter, it shows "?"
    try:
        main()
        print(end="", flush=True)
    except KeyboardInterrupt:
        print("\nInterrupted. What was there before is still there.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the lines, such as `head -3`, has enough of them; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a folder that may not be written to
        sys.exit(f"error: {error.filename or 'output/'}: {error.strerror}; mend that and run this again")
