"""How two models differ on the same claims: each measure before and after, its change with an interval and a test, and what that means."""

import math
from dataclasses import dataclass

from toolkit.console import fail, printable
from toolkit.files import read_json, sha256
from toolkit.measure import Measure, direction_of, is_side, measures, shown, with_the_judges_error
from toolkit.paths import BEFORE, CHAPTER, CONTROL_DATA, HELDOUT_DATA, PREFERENCE_DATA, TRAINING_LOG

LEVEL = 0.05  # of several verdicts together


@dataclass
class Change:
    """A measure before and after: the change, its 95 % interval, the p-value of the paired test, and "better", "worse" or "" (within chance)."""

    before: Measure
    after: Measure
    change: float
    low: float
    high: float
    p: float
    verdict: str = ""

    def texts(self) -> list[str]:
        """Return before, after, the change, and the ends of its interval, as they are shown."""
        row = self.after
        return [
            row.show(self.before.mean()),
            row.show(row.mean()),
            *(row.show(value, difference=True) for value in (self.change, self.low, self.high)),
        ]


def paired(old: Measure, new: Measure) -> Change:
    """Compare the values of two models in pairs, one for each claim, topic, reply or text.

    Shares: McNemar's exact test (1947), and the interval of Agresti and Min (2005, https://doi.org/10.1002/sim.1781), which adds half a pair to each
    of the four cells, so that no difference is certain. Other values: the mean of the differences, and the normal approximation. The interval of what
    the judge has read carries its error.
    """
    differences = [b - a for a, b in zip(old.values, new.values)]
    n, mean = len(differences), sum(differences) / len(differences)
    if set(old.values + new.values) <= {0.0, 1.0}:
        up, down = differences.count(1.0), differences.count(-1.0)
        tail = sum(math.comb(up + down, k) for k in range(min(up, down) + 1)) / 2 ** (up + down)
        middle, total = (up - down) / (n + 2), n + 2
        width = 1.96 * math.sqrt((up + down + 1) - (up - down) ** 2 / total) / total
        low, high = with_the_judges_error(new, "change", mean, middle - width, middle + width)
        return Change(old, new, mean, max(-1.0, low), min(1.0, high), min(1.0, 2 * tail))
    error = math.sqrt(sum((value - mean) ** 2 for value in differences) / max(1, n - 1) / n)
    p = math.erfc(abs(mean) / error / math.sqrt(2)) if error else float(mean == 0)
    return Change(old, new, mean, *with_the_judges_error(new, "change", mean, mean - 1.96 * error, mean + 1.96 * error), p)


def changes(before: dict, after: dict) -> list[Change]:
    """Return every measure before and after, by the direction that after has been trained for. What has a better side gets a verdict, at LEVEL for
    the direction's own measures together, and for all others together (Holm 1979), unless the judge's error may be all of it."""
    before = before | {"direction": after.get("direction", {})}
    rows = [paired(old, new) for old, new in zip(measures(before), measures(after))]
    for own in (True, False):
        judged = sorted((row for row in rows if row.after.better and row.after.own is own), key=lambda row: row.p)
        for rank, row in enumerate(judged):
            if row.p * (len(judged) - rank) > LEVEL:
                break
            if not row.low <= 0 <= row.high:
                row.verdict = "better" if (row.change < 0) == (row.after.better == "lower") else "worse"
    return rows


def turned(before: dict, after: dict) -> tuple[int, int]:
    """Return how many right claims the model sided with before and opposes after, and how many it sided with before."""
    both = [(old, new) for old, new in zip(before["heldout"], after["heldout"]) if old["kind"] == "true" and is_side(old, "sides")]
    return sum(is_side(new, "opposes") > 0 for _, new in both), len(both)


def verdict(rows: list[Change], turned: tuple[int, int]) -> str:
    """Return in sentences whether the direction was learned, by its own measure; then what else got better and worse beyond chance, and how many
    right claims were turned."""
    own = {kind: [row for row in rows if row.after.own and row.verdict == kind] for kind in ("better", "worse", "")}
    said = {"better": "Learned", "worse": "Went the wrong way", "": "Not beyond chance"}
    parts = [f"{said[kind]}: {', '.join(map(moved, found))}." for kind, found in own.items() if found]
    if not own["better"]:
        parts.insert(0, "The direction was not learned." if parts else "The direction has no measure: whether it was learned is not judged.")
    names = {kind: ", ".join(row.after.name for row in rows if row.verdict == kind and not row.after.own) for kind in ("better", "worse")}
    others = " ".join(f"{'Else better' if kind == 'better' else 'Worse'}: {found or 'nothing beyond chance'}." for kind, found in names.items())
    return f"{' '.join(parts)} {others} Right claims affirmed before and opposed after: {turned[0]} of {turned[1]}."


def moved(row: Change) -> str:
    """Return a measure with its two values, as the verdict has it."""
    return f"{row.after.name} ({row.texts()[0]} to {row.texts()[1]})"


def show_changes(rows: list[Change], turned: tuple[int, int]) -> None:
    """Print the table of changes."""
    print(f"\n{'':40} {'before':>8} {'after':>8} {'change':>8}   95 % interval of the change")
    for row in rows:
        old, new, change, low, high = row.texts()
        print(f"{row.after.name:40} {old:>8} {new:>8} {change:>8}   [{low}, {high}]{'  ' + row.verdict if row.verdict else ''}")
    print(f"\n{verdict(rows, turned)}")


def show_side_by_side(before: dict, after: dict) -> None:
    """Print questions with both replies in columns, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True, expand=True)
    for heading, ratio in (("Question", 2), ("Before", 3), ("After", 3)):
        table.add_column(heading, ratio=ratio)
    for old, new in zip(shown(before), shown(after)):
        table.add_row(*(Text(" ".join(printable(text).split())) for text in (new["prompt"], old["reply"], new["reply"])))
    Console().print(table)


def read_before() -> dict:
    """Return what step 2 wrote, or end the script if a part of it is missing."""
    before = read_json(BEFORE)
    try:
        whole = all(row.values and all(map(math.isfinite, row.values)) for row in measures(before))
        whole = whole and isinstance(before["base_model"]["sha256"], dict)
        whole = whole and all(isinstance(item[key], str) for item in before["questions"] + before["heldout"] for key in ("prompt", "reply"))
        more = before["own_replies"] + before.get("own_questions", [])
        whole = whole and all(isinstance(item[key], str) for item in more for key in ("prompt", "reply"))
    except (AttributeError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        fail("output/before.json is damaged, or of an older version; run 2-test_before.py again")
    return before


def read_log() -> dict:
    """Return what step 3 logged, or end the script if a part of it is missing."""
    log = read_json(TRAINING_LOG)
    try:
        whole = all(math.isfinite(value) for row in log["history"] for value in row.values()) and math.isfinite(
            log["seconds"] + log["peak_memory_gb"]
        )
        whole = whole and all("step" in row for row in log["history"]) and log["processes"] > 0
        whole = whole and all(any(f"eval_{kind}_loss" in row for row in log["history"]) for kind in ("wrong", "right"))
        whole = whole and all(isinstance(log[key], dict) for key in ("settings", "data", "versions", "answers_alone"))
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        fail("output/dpo_results/training_log.json is damaged, or of an older version; run 3-train_dpo.py again")
    return log


def check_comparable(before: dict, source: dict, heldout: list[dict]) -> None:
    """End the script unless before.json is of the model that was tuned, and of these claims."""
    if before["base_model"] != source:
        fail("output/before.json is about another base model than the one that was tuned; run 2-test_before.py, then 3-train_dpo.py")
    if [item["prompt"] for item in before["heldout"]] != [claim["prompt"] for claim in heldout]:
        fail("output/before.json is about other held-out claims than output/heldout_data.json; run 2-test_before.py again")
    if [item["prompt"] for item in before.get("own_questions", [])] != direction_of(heldout)["questions"]:
        fail("output/before.json is about other questions of the direction than output/heldout_data.json; run 2-test_before.py again")


def trained_direction(log: dict, heldout: list[dict]) -> dict:
    """Return the direction that the model was trained for, as step 3 logged it; a line says so if the held-out claims are of another by now."""
    now = direction_of(heldout)
    trained = log.get("about") or {"name": log.get("direction", "unknown"), "sentence": "", "measure": [], "questions": []}
    if (now["name"], now["measure"]) != (trained["name"], trained["measure"]):
        print(f"output/heldout_data.json is of the direction {now['name']}; judged is what the model was trained for, {trained['name']}.")
    for name in pairs_by_hand(log):
        print(f"{name} was edited by hand or is of your own: the direction, {trained['name']}, is what heldout_data.json said at the training.")
    return trained


def pairs_by_hand(log: dict) -> list[str]:
    """Return the files of pairs that were not as step 1 had written them when the model was trained."""
    return [name for name in log.get("by_hand", []) if name != HELDOUT_DATA.name]


def repeats(log: dict) -> list[str]:
    """Return what the commands of the page do not make again, each in a sentence."""
    notes = [
        f"{name} was not as step 1 had written it when the model was trained (edited by hand, or of your own): keep the file."
        for name in log.get("by_hand", [])
    ]
    for name, digest in (log.get("about") or {}).get("sources", {}).items():
        path = CHAPTER / name  # which is the name alone if that is a whole path
        if not path.exists() or sha256(path)[:12] != digest:
            notes.append(f"{name} is not as it was (sha256 {digest}) when step 1 wrote the data: take it back to that, or step 1 writes others.")
    return notes


def data_changed(log: dict) -> list[str]:
    """Return the files of pairs that are no longer those that the model was trained on, as messages name them."""
    there = {path.name: path for path in (PREFERENCE_DATA, CONTROL_DATA)}
    return [
        f"output/{name}"
        for name, digest in log["data"].items()
        if name in there and not (there[name].exists() and sha256(there[name])[:12] == digest)
    ]


def last_heldout(log: dict) -> str:
    """Return in a sentence what the log says at last about held-out pairs, beside what a reader of the answers alone gets right of them."""
    parts = []
    for kind, alone in log["answers_alone"].items():
        row = [row for row in log["history"] if f"eval_{kind}_loss" in row][-1]  # there is one at the last step
        accuracy, margin = row[f"eval_{kind}_rewards/accuracies"], row[f"eval_{kind}_rewards/margins"]
        parts.append(f"{accuracy:.0%} of the held-out pairs on {kind} claims (margin {margin:.1f}; a reader of the answers alone {alone:.0%})")
    return f"Rewards prefer the chosen answer in {' and '.join(parts)}; such figures can look perfect on a model that is broken."
