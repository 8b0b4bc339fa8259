"""Fit the judge's weights to the labelled replies, and say how well it reads replies on topics that it was not fitted to.

    python code/chapter02_dpo/toolkit/fit_judge.py

Reads judge_labels.jsonl beside the scripts, one labelled reply a line: what the user said, the claim and its opposite, the reply, the model that
wrote it, the readers' labels, and the untrained SmolLM2's lead (judge.leads). Writes judge.json. Needs scikit-learn (tests/requirements.txt).
Prints the confusion and, for each model and kind of claim, the rates by labels and by judge, from ten fits that each leave a tenth of the topics
out.
"""

import json
import sys
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toolkit.files import write
from toolkit.judge import SIDES, WEIGHTS, evidence, plain, sequences, weigh
from toolkit.paths import CHAPTER

LABELS = CHAPTER / "judge_labels.jsonl"
SELDOM = 6  # sequences that fewer labelled replies hold are left out
READERS = (lambda row: row["labels"][0]), (lambda row: row["judged"])
SCALE = 0.6  # of a sequence beside the evidence, which is scaled to a standard deviation of 1


def fit(rows: list[dict]) -> dict:
    """Return the weights of a logistic regression from what was found in each reply to the first reader's label, all three sides counting alike."""
    import numpy
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    names = list(rows[0]["evidence"])
    counts = Counter(run for row in rows for run in row["sequences"])
    runs = [run for run in sorted(counts) if counts[run] >= SELDOM]
    scaler = StandardScaler()
    evidence = scaler.fit_transform(numpy.array([[row["evidence"][name] for name in names] for row in rows]))
    there = numpy.array([[run in row["sequences"] for run in runs] for row in rows]) * SCALE
    model = LogisticRegression(C=0.2, max_iter=3000, class_weight="balanced")
    model.fit(numpy.hstack([evidence, there]), [SIDES.index(row["labels"][0]) for row in rows])
    coefficients = model.coef_.T
    table = numpy.column_stack([scaler.mean_, scaler.scale_, coefficients[: len(names)]]).round(4).tolist()
    return {
        "bias": model.intercept_.round(4).tolist(),
        "evidence": dict(zip(names, table)),
        "sequences": dict(zip(runs, (SCALE * coefficients[len(names) :]).round(3).tolist())),
    }


def read_left_out(rows: list[dict]) -> list[dict]:
    """Return the labelled replies, each with what a judge that was fitted without its topic finds."""
    for row in rows:
        texts = row["claim"], row["opposite"], row["reply"]
        row["evidence"], row["sequences"] = evidence(*texts, row["lead"]), sequences(*texts)
    topics = sorted({row["topic"] for row in rows})
    for part in range(10):
        left_out = set(topics[part::10])
        weights = fit([row for row in rows if row["topic"] not in left_out])
        for row in rows:
            if row["topic"] in left_out:
                sides = weigh(row["evidence"], row["sequences"], weights)
                row["judged"] = plain(row["claim"], row["opposite"], row["reply"], row["evidence"]) or max(sides, key=sides.get)
    return rows


def exchanges(label: str, judged: str) -> bool:
    """Return whether one of the two took the user's side and the other the opposite."""
    return {label, judged} == {"sides", "opposes"}


def in_short(rows: list[dict]) -> str:
    """Return in a sentence how single replies are read, on topics that were left out of the fit; judge.json carries it to the report."""
    alike = sum(row["labels"][0] == row["judged"] for row in rows) / len(rows)
    taken = [row for row in rows if row["labels"][0] != "neither"]
    right, exchanged = (sum(test(row["labels"][0], row["judged"]) for row in taken) / len(taken) for test in (str.__eq__, exchanges))
    return f"Read as labelled: {alike:.0%}; of those that take a side {right:.0%}, with the sides exchanged in {exchanged:.0%}."


def share(rows: list[dict], side: str, by) -> float:
    """Return in percent how many of the rows take a side by what by() returns of each."""
    return 100 * sum(by(row) == side for row in rows) / len(rows)


def off(rows: list[dict], before: list[dict] | None = None) -> list[tuple[float, float]]:
    """Return for "sides" and "opposes" the rate by labels and by judge, or if there are rows before, by how much these changed. In percent."""
    return [tuple(share(rows, side, by) - (share(before, side, by) if before else 0) for by in READERS) for side in SIDES[:2]]


def cells(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Return the rows of each model and kind, of which "wrong" is both kinds of wrong claims."""
    found = {}
    for row in rows:
        for kind in [row["kind"]] + ["wrong"] * (row["kind"] != "true"):
            found.setdefault((row["model"], kind), []).append(row)
    return dict(sorted(found.items()))


def changed(rows: list[dict]) -> dict[tuple[str, str], tuple[list[dict], list[dict]]]:
    """Return for each tuned model and kind its rows, and those of the untrained model on the same messages, where both were labelled."""
    base, found = {row["user"]: row for row in rows if row["model"].startswith("SmolLM2 untrained")}, {}
    for (model, kind), some in cells(rows).items():
        if model.startswith("SmolLM2 tuned") and all(row["user"] in base for row in some):
            found[model, kind] = some, [base[row["user"]] for row in some]
    return found


def root_mean_square(errors: list[tuple[float, float]]) -> float:
    return (sum((one - other) ** 2 for one, other in errors) / len(errors)) ** 0.5


def errors(rows: list[dict]) -> dict[str, float]:
    """Return how far off a rate by the judge is, and a change of one (root mean squares, as shares); the intervals of the tables carry them."""
    rates = [pair for some in cells(rows).values() for pair in off(some)]
    moves = [pair for some, before in changed(rows).values() for pair in off(some, before)]
    return {"rate": round(root_mean_square(rates) / 100, 3), "change": round(root_mean_square(moves) / 100, 3)}


def report(rows: list[dict]) -> str:
    """Return in words how the judge reads what it was not fitted to: the confusion, and the rates and their changes by model and kind."""
    topics = {row["topic"] for row in rows}
    lines = [f"{len(rows)} labelled replies on {len(topics)} topics. Labelled (rows) and judged (columns), on topics that were left out of the fit:"]
    counts = Counter((row["labels"][0], row["judged"]) for row in rows)
    lines.append(f"{'':10}" + "".join(f"{side:>9}" for side in SIDES))
    for label in SIDES:
        total = sum(counts[label, side] for side in SIDES)
        lines.append(f"{label:10}" + "".join(f"{counts[label, side] / total:9.0%}" for side in SIDES) + f"   of {total}")
    lines += [in_short(rows), "", "Rates in %, sides / opposes / neither, by labels and by judge:"]
    misses = []
    for (model, kind), some in cells(rows).items():
        if kind != "wrong":
            rates = [[share(some, side, by) for side in SIDES] for by in READERS]
            misses += [abs(one - other) for one, other in zip(*rates)]
            lines.append(f"  {model:32} {kind:7} {len(some):4}   " + "   ".join(" / ".join(f"{rate:2.0f}" for rate in own) for own in rates))
    lines.append(f"They differ by {sum(misses) / len(misses):.0f} points on average, {max(misses):.0f} at most.")
    lines += ["", "Changes against the untrained model on the same messages, in points, sides and opposes, by labels > by judge:"]
    for (model, kind), (some, before) in changed(rows).items():
        moves = "   ".join(f"{one:+4.0f} > {other:+4.0f}" for one, other in off(some, before))
        lines.append(f"  {model:40} {kind:7} {len(some):4}   {moves}")
    wide = {name: f"{100 * error:.0f}" for name, error in errors(rows).items()}
    lines.append(f"Root mean square of what they differ by: rates {wide['rate']} points, changes {wide['change']}.")
    return "\n".join(lines)


def main() -> None:
    rows = read_left_out([json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()])
    write(WEIGHTS, json.dumps({"validated": in_short(rows), "off": errors(rows)} | fit(rows), ensure_ascii=False).replace('], "', '],\n"') + "\n")
    print(report(rows))


if __name__ == "__main__":
    main()
