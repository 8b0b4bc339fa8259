"""Held-out pairs for the curves of a training, and what a reader of the answers alone, who never sees the prompt, makes of them."""

import math
import re
from collections import Counter

from toolkit.console import fail
from toolkit.files import read_json
from toolkit.measure import direction_of
from toolkit.pairs import read_pairs
from toolkit.paths import HELDOUT_DATA, WRITTEN

WRONG_PAIRS = 20  # on wrong claims, measured every 100 steps and at the end


def heldout_pairs(tokenizer, longest: int, controls: float) -> dict[str, list[dict]]:
    """Return held-out pairs on wrong and on right claims, spread over the file; controls is how many right ones the training has for a wrong one."""
    pairs = read_pairs(HELDOUT_DATA, tokenizer, longest)
    kinds = [row.get("user_is_right") is True for row in read_json(HELDOUT_DATA)]
    wanted = {"wrong": WRONG_PAIRS, "right": max(4, round(WRONG_PAIRS * controls))}
    sets = {}
    for name, is_right in (("wrong", False), ("right", True)):
        rows = [pair for pair, kind in zip(pairs, kinds) if kind is is_right]
        if not rows:
            fail(f"output/heldout_data.json has no claim on which the user is {name}; run 1-generate_data.py again")
        sets[name] = rows[:: max(1, len(rows) // wanted[name])][: wanted[name]]
    return sets


def answers_alone(train: list[dict], heldout: list[dict]) -> float:
    """Return the share of held-out pairs of which naive Bayes over the words of the training answers finds the chosen one likelier to be chosen.

    It never sees a prompt. What it gets right shows no judgement of the model's either. (Add-one smoothing; Jurafsky and Martin, Speech and Language
    Processing, chapter on naive Bayes.)
    """

    def said(answer: list[dict]) -> list[str]:
        return re.findall(r"\w+(?:'\w+)?", answer[-1]["content"].lower().replace("’", "'"))

    counts = {key: Counter(word for pair in train for word in said(pair[key])) for key in ("chosen", "rejected")}
    vocabulary = max(1, len(counts["chosen"] | counts["rejected"]))

    def lead(answer: list[dict]) -> float:
        score = {key: math.log(1 / (count.total() + vocabulary)) for key, count in counts.items()}
        known = [word for word in said(answer) if word in counts["chosen"] or word in counts["rejected"]]
        return sum(math.log((counts["chosen"][w] + 1) / (counts["rejected"][w] + 1)) + score["chosen"] - score["rejected"] for w in known)

    leads = [lead(pair["chosen"]) - lead(pair["rejected"]) for pair in heldout]
    return sum((lead > 0) + (lead == 0) / 2 for lead in leads) / len(leads)


def trained_for(data: dict[str, str]) -> dict:
    """Return what the log says of where its data came from: the name of the direction that step 1 wrote them for, what the held-out claims say
    of it, and the files of pairs that are not as step 1 wrote them."""
    about = direction_of(read_json(HELDOUT_DATA))
    written = WRITTEN.read_text(encoding="utf-8", errors="replace") if WRITTEN.exists() else ""
    return {"direction": about["name"], "about": about, "by_hand": [name for name, digest in data.items() if not f"\n{written}".count(f"\n{digest}")]}
