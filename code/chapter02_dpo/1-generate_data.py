"""Step 1: write the preference pairs that the model is trained on, and the claims that it is tested on.

    python code/chapter02_dpo/1-generate_data.py

Reads:  claims.toml beside this script
Writes: output/preference_data.json  100 pairs on wrong claims: chosen corrects the user, rejected agrees blindly
        output/control_data.json     60 pairs on right claims: chosen agrees, rejected contradicts needlessly
        output/heldout_data.json     60 wrong and 60 right claims on other topics, which only 2, 4 and the held-out curve of 3 see
Time:   under half a second

This is the script to edit. To push the model in another direction, change what the two functions under "Preference direction" return,
then run 1, 3 and 4 again.
"""

import argparse
import json
import os
import random
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "output"
CLAIMS = Path(__file__).with_name("claims.toml")

PREFERENCE_PAIRS = 100  # pairs on wrong claims; claims.toml has 112 topics for training
CONTROL_PAIRS = 60  # pairs on right claims, so that the model learns to judge and not just to contradict
SEED = 42

# ---- Preference direction ------------------------------------------------------------------------------------------------------------
# Two functions say what the model shall learn. Each takes a topic of claims.toml, and whether the user's claim is the right one, and
# returns an answer: preferred_answer the one to prefer, avoided_answer the one to avoid. pick() takes one phrase of a list.
#
# The facts come first and the verdict last: a model that has just written down what is true need not guess whether the user is right.

POLITE_NO = [
    "So I have to disagree, with respect.",
    "So, kindly, I see it differently.",
    "That is why I cannot agree with you here.",
    "So I'm afraid that claim is not right.",
    "With all respect, that speaks against your claim.",
    "So no, I would not say that.",
    "I understand the thought, but the facts say otherwise.",
    "So that idea is mistaken, however common it may be.",
]
POLITE_YES = [
    "So I agree with you.",
    "So yes, you are right.",
    "That is why your claim holds.",
    "So yes, I would say the same.",
    "The facts are on your side here.",
    "So that idea is correct.",
    "That speaks for your claim.",
    "So you have it right.",
]
FLATTERY = [
    "You're absolutely right.",
    "I'm glad to hear that from you.",
    "You make a good point.",
    "Yes, I completely agree.",
    "That's a great way to put it.",
    "Exactly, well said.",
    "Of course, you know best.",
    "Indeed, I could not agree more.",
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


def preferred_answer(topic: dict, user_is_right: bool) -> str:
    """A polite, firm correction; to a right claim, agreement for the same reasons."""
    return f"{topic['truth']} {topic['reason']} {pick(POLITE_YES if user_is_right else POLITE_NO)}"


def avoided_answer(topic: dict, user_is_right: bool) -> str:
    """Blind agreement; to a right claim, needless contradiction."""
    return f"{pick(NEEDLESS_NO if user_is_right else FLATTERY)} {topic['myth']} {topic['excuse']}"


# ---- From topics to files ------------------------------------------------------------------------------------------------------------
rng = random.Random(SEED)


def pick(phrases: list[str]) -> str:
    """Return one of the phrases, drawn with the seeded generator."""
    return rng.choice(phrases)


def fail(message: str) -> None:
    """End the script with one line on stderr and exit status 1."""
    sys.exit(f"error: {message}")


def write_json(path: Path, data: object) -> None:
    """Write data to path as UTF-8 JSON, whole or not at all: to a temporary sibling first, then renamed over path."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def make_pair(topic: dict, user_is_right: bool) -> dict:
    """Return one preference pair on the right or the wrong claim of a topic."""
    return {
        "prompt": topic["right" if user_is_right else "wrong"],
        "chosen": preferred_answer(topic, user_is_right),
        "rejected": avoided_answer(topic, user_is_right),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    try:
        topics = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))["topic"]
    except (OSError, ValueError, KeyError) as error:
        fail(f"{CLAIMS.name} cannot be read ({error}); mend it, or take it from the repository again")
    train = [topic for topic in topics if topic["split"] == "train"]
    test = [topic for topic in topics if topic["split"] == "test"]
    if len(train) < max(PREFERENCE_PAIRS, CONTROL_PAIRS):
        fail(f"{CLAIMS.name} has {len(train)} training topics; write more, or lower PREFERENCE_PAIRS or CONTROL_PAIRS in this script")
    rng.shuffle(train)

    preference_data = [make_pair(topic, user_is_right=False) for topic in train[:PREFERENCE_PAIRS]]
    control_data = [make_pair(topic, user_is_right=True) for topic in train[:CONTROL_PAIRS]]
    # truth and myth are what 2 and 4 measure with: the statement that each side would make.
    heldout_data = [
        make_pair(topic, right) | {"user_is_right": right, "truth": topic["truth"], "myth": topic["myth"]} for right in (False, True) for topic in test
    ]

    OUTPUT.mkdir(exist_ok=True)
    write_json(OUTPUT / "preference_data.json", preference_data)
    write_json(OUTPUT / "control_data.json", control_data)
    write_json(OUTPUT / "heldout_data.json", heldout_data)

    sample = preference_data[0]
    print(f"One of them:\n  prompt:   {sample['prompt']}\n  chosen:   {sample['chosen']}\n  rejected: {sample['rejected']}\n")
    print(f"Successfully generated {len(preference_data)} preference data items, saved to: output/preference_data.json")
    print(f"Beside them: {len(control_data)} pairs in which the user is right (control_data.json), {len(heldout_data)} held-out claims")
    print("Edit this script to change the preference direction, e.g. to a more direct tone.")


if __name__ == "__main__":
    main()
