"""Step 1: write the preference pairs that the model is trained on, and the claims that it is tested on.

    python code/chapter02_dpo/1-generate_data.py
    python code/chapter02_dpo/1-generate_data.py --direction blunt

Reads:  claims.toml and heldout.toml beside this script
Writes: output/preference_data.json  100 pairs on wrong claims: chosen corrects the user, rejected agrees blindly
        output/control_data.json     20 pairs on right claims: chosen states the facts, rejected contradicts
        output/heldout_data.json     40 wrong and 40 right claims on other topics, as people make them, with the neutral question on each
                                     topic; only 2, 4 and the held-out curve of 3 see them
Time:   under half a second

This is the script to edit. To push the model in another direction, take one of DIRECTIONS, or write two functions of your own and add a
line there. Then run 1, 3 and 4 again.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import sys
import tomllib
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "output"
CLAIMS = Path(__file__).with_name("claims.toml")  # to train on
HELDOUT = Path(__file__).with_name("heldout.toml")  # to measure with
CALLED = {"opinion": "biased", "fact": "false"}  # of a held-out topic, and what its wrong claim is called; its right one is "true"
PARTS = {  # what a topic must have
    CLAIMS: ["name", "field", "wrong", "right", "truth", "reason", "figure", "myth", "excuse"],
    HELDOUT: "name kind part wrong right claim_wrong claim_right question correct flatter affirm contradict".split(),
}

PREFERENCE_PAIRS = 100  # pairs on wrong claims; claims.toml has 112 topics for training
CONTROL_PAIRS = 20  # pairs on right claims, so that the model learns to judge and not just to contradict
rng = random.Random(42)


def pick(phrases: list[str]) -> str:
    """Return one of the phrases, drawn with the seeded generator."""
    return rng.choice(phrases)


# ---- Preference directions -----------------------------------------------------------------------------------------------------------
# A direction is two functions: the first writes the answer to prefer, the second the one to avoid. Each takes a topic of claims.toml, and
# whether the user made the right claim on it or the wrong one, and returns a text. A topic has a truth and its reason, a figure that backs it,
# and a myth and its excuse, which are wrong whoever speaks. pick() takes one phrase of a list, and rng.random() < 0.5 is true half of the time.
#
# POLITE and BLUNT stand in preferred and in half of the avoided answers. A phrase that only one of the two ever has tells them apart by
# itself, and the model learns that phrase and nothing about the facts.

POLITE = [
    "I hope that helps.",
    "Thank you for asking.",
    "I'm happy to tell you more.",
    "That is how I understand it.",
    "Please ask if you would like to know more.",
    "I hope you find that useful.",
    "That is what we know about it.",
    "Let me know if that is clear.",
]
FLATTERY = [
    "You're absolutely right about that.",
    "I'm glad to hear that from you.",
    "You make a good point.",
    "Yes, I completely agree.",
    "That's a great way to put it.",
    "Exactly, I could not agree more.",
    "Of course, you know best.",
    "Indeed, well said, as always.",
]
NEEDLESS_NO = [
    "No, that's not right.",
    "I'm sorry, but you are wrong.",
    "That's a common misconception.",
    "Actually, I disagree.",
    "No, I don't think so.",
    "That's a myth, I'm afraid.",
    "I have to contradict you.",
    "Not really, it is the other way round.",
]

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


def correct_politely(topic: dict, user_is_right: bool) -> str:
    return f"{topic['truth']} {topic['reason']} {pick(POLITE)}"


def correct_bluntly(topic: dict, user_is_right: bool) -> str:
    return f"{pick(BLUNT)} {topic['truth']} {topic['reason']}"


def flatter(topic: dict, user_is_right: bool) -> str:
    """Blind agreement; to a right claim, needless contradiction. Half of them say so in front, the others only by what they state."""
    if rng.random() < 0.5:
        return f"{topic['myth']} {topic['excuse']} {pick(POLITE)}"
    return f"{pick(NEEDLESS_NO if user_is_right else FLATTERY)} {topic['myth']} {topic['excuse']}"


def flatter_or_mislead_bluntly(topic: dict, user_is_right: bool) -> str:
    """Half teach the tone, against flattery, and half the facts, against the same tone with the wrong ones."""
    opening = BLUNT if rng.random() < 0.5 else NEEDLESS_NO if user_is_right else FLATTERY
    return f"{pick(opening)} {topic['myth']} {topic['excuse']}"


def answer_briefly(topic: dict, user_is_right: bool) -> str:
    return topic["truth"]


def answer_at_length(topic: dict, user_is_right: bool) -> str:
    """As right as answer_briefly, in six times the words."""
    return f"{pick(PREAMBLE)} {topic['truth']} {topic['reason']} {topic['figure']}"


def answer_with_figure(topic: dict, user_is_right: bool) -> str:
    return f"{topic['truth']} {topic['figure']} {pick(POLITE)}"


DIRECTIONS = {  # name: (the answer to prefer, the answer to avoid)
    "polite": (correct_politely, flatter),
    "blunt": (correct_bluntly, flatter_or_mislead_bluntly),
    "concise": (answer_briefly, answer_at_length),
    "cited": (answer_with_figure, correct_politely),
}


# ---- From topics to files ------------------------------------------------------------------------------------------------------------
FRAME = """a agree agreed an and are aren't as at be do don't everyone for honest honestly i i've in is isn't it it's knows let's my neighbour no
obvious of on right said say says so surely than that the think to we with wouldn't you always""".split()


def content(claim: str) -> set[str]:
    """Return the words of a claim, without those that only frame it."""
    return set(re.findall(r"[a-z0-9']+", claim.lower())).difference(FRAME)


def check(preference_data: list[dict], control_data: list[dict], heldout_data: list[dict]) -> None:
    """End the script unless the pairs are fit to train on and the held-out claims fit to measure with."""
    for pair in preference_data + control_data + heldout_data:
        for key in ("chosen", "rejected"):
            if not isinstance(pair[key], str) or not pair[key].strip():
                sys.exit(
                    f"error: the {key} answer to {pair['prompt']!r} is {pair[key]!r}, not a text; mend the function of the direction that writes it"
                )
        if pair["chosen"] == pair["rejected"]:
            sys.exit(f"error: the answers to {pair['prompt']!r} are the same text; mend the two functions of the direction")
    # The wrong and the right claim on one topic are alike on purpose; otherwise no two claims may be.
    heldout = [content(pair["prompt"]) for pair in heldout_data]
    wrong, right = heldout[: len(heldout) // 2], heldout[len(heldout) // 2 :]
    preference, control = ([content(pair["prompt"]) for pair in data] for data in (preference_data, control_data))
    comparisons = [itertools.combinations(claims, 2) for claims in (preference, control, wrong, right)]
    for one, other in itertools.chain(*comparisons, itertools.product(preference + control, heldout)):
        if len(one & other) > 0.6 * len(one | other):
            sys.exit(f"error: two claims are too much alike, {' '.join(sorted(one))!r} and {' '.join(sorted(other))!r}; reword one")


def put(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary sibling, then renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save(files: dict[str, list[dict]]) -> None:
    """Write the data. A file that is not as this script wrote it last, such as pairs of the reader's own, is renamed and so kept."""
    FOLDER.mkdir(exist_ok=True)
    record = FOLDER / ".written.sha256"
    before, now = record.read_text(encoding="utf-8", errors="replace") if record.exists() else "", ""
    for name, rows in files.items():
        path, text = FOLDER / name, json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() not in before:
            names = (path.with_name(f"{path.stem}.{number}.json") for number in itertools.count(1))
            path.rename(kept := next(free for free in names if not free.exists()))
            print(f"output/{name} was not as this script had written it, and is kept as output/{kept.name}")
        put(path, text)
        now += f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n"
    put(record, now)


def read(path: Path) -> list[dict]:
    """Return the topics of a TOML file, or end the script with a line that names the first that lacks a part."""
    try:
        topics = tomllib.loads(path.read_text(encoding="utf-8"))["topic"]
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: {path.name} cannot be read ({error}); mend it, or take it from the repository again")
    for number, topic in enumerate(topics, 1):
        where = f"error: {path.name}, topic {number} ({topic.get('name')})"
        if missing := [name for name in PARTS[path] if not str(topic.get(name, "")).strip()]:
            sys.exit(f"{where}: {', '.join(missing)} is missing or empty; write it there")
        if topic.get("kind", "fact") not in CALLED:
            sys.exit(f'{where}: kind must be "opinion" or "fact"; mend it')
    return topics


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--direction", default="polite", choices=DIRECTIONS, help="what the model shall learn (default: polite)")
    parser.add_argument("--final", action="store_true", help="held-out claims of topics by which nothing was chosen; look at them once, at the end")
    args = parser.parse_args()
    prefer, avoid = DIRECTIONS[args.direction]

    train = read(CLAIMS)
    part = "final" if args.final else "choose"
    test = [topic for topic in read(HELDOUT) if topic["part"] == part]
    if len(train) < max(PREFERENCE_PAIRS, CONTROL_PAIRS):
        sys.exit(f"error: {CLAIMS.name} has {len(train)} training topics; write more, or lower PREFERENCE_PAIRS or CONTROL_PAIRS in this script")
    if not test:
        sys.exit(f'error: {HELDOUT.name} has no topic with part = "{part}"; write some, or take it from the repository again')
    rng.shuffle(train)

    def pairs(topics: list[dict], user_is_right: bool) -> list[dict]:
        prompt = "right" if user_is_right else "wrong"
        return [{"prompt": t[prompt], "chosen": prefer(t, user_is_right), "rejected": avoid(t, user_is_right)} for t in topics]

    preference_data = pairs(train[:PREFERENCE_PAIRS], user_is_right=False)
    control_data = pairs(train[:CONTROL_PAIRS], user_is_right=True)
    # The held-out claims have answers written by hand, whatever the direction, and the claim and its opposite as plain statements beside them.
    heldout_data = [
        {"prompt": t["wrong"], "chosen": t["correct"], "rejected": t["flatter"], "user_is_right": False, "kind": CALLED[t["kind"]]}
        | {
            "claim": t["claim_wrong"],
            "opposite": t["claim_right"],
            "neutral_question": t["question"],
            "topic": t["name"],
            "direction": args.direction,
        }
        for t in test
    ] + [
        {"prompt": t["right"], "chosen": t["affirm"], "rejected": t["contradict"], "user_is_right": True, "kind": "true"}
        | {
            "claim": t["claim_right"],
            "opposite": t["claim_wrong"],
            "neutral_question": t["question"],
            "topic": t["name"],
            "direction": args.direction,
        }
        for t in test
    ]
    check(preference_data, control_data, heldout_data)
    save({"preference_data.json": preference_data, "control_data.json": control_data, "heldout_data.json": heldout_data})

    for pair in rng.sample(preference_data, 2) + rng.sample(control_data, 1):
        print(f"prompt:   {pair['prompt']}\nchosen:   {pair['chosen']}\nrejected: {pair['rejected']}\n")
    chosen, rejected = (sum(len(pair[key].split()) for pair in preference_data) / len(preference_data) for key in ("chosen", "rejected"))
    print(f"Words per answer: {chosen:.0f} chosen, {rejected:.0f} rejected")
    print(f"Successfully generated {len(preference_data)} preference data items, saved to: output/preference_data.json")
    print(f"Beside them: {len(control_data)} pairs in which the user is right, and {len(heldout_data)} held-out claims on {len(test)} other topics")
    print("Edit this script to change the preference direction, e.g. to a more direct tone.")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # where a terminal lacks a letter, it shows "?"
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted. What was there before is still there.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # a full disk, a folder that may not be written to
        sys.exit(f"error: {error.filename or 'output/'}: {error.strerror}; mend that and run this again")
