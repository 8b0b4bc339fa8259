"""The pictures of a training: the rows of its log against the step, as one PNG file or as a vector picture for each panel."""

import io
import math
import os
from pathlib import Path

PANELS = {  # title and unit: (what, its name in the log, colour) of each line
    "DPO loss (nats)": [("loss", "loss/dpo", "C0")],
    "Rewards (beta × nats)": [("chosen", "rewards/chosen", "C2"), ("rejected", "rewards/rejected", "C3")],
    "Reward margin, chosen minus rejected (beta × nats)": [("margin", "rewards/margins", "C0")],
    "Reward accuracy (share of pairs with a margin above 0)": [("accuracy", "rewards/accuracies", "C0")],
}
NOTICE = (
    "What to notice: the loss of the training pairs goes on to almost 0 when that of the held-out pairs has stopped falling; the gap is what was\n"
    "learned by heart. Look whether the chosen reward rises, or the rejected one only falls faster. All of this can look perfect on a broken model."
)


def pyplot():
    """Return matplotlib's pyplot, drawing into files only, whatever backend a notebook has asked for."""
    os.environ["MPLBACKEND"] = "Agg"  # importing matplotlib raises where it names a notebook's backend that is not installed
    from matplotlib import pyplot

    return pyplot


def draw_panel(axis, title: str, history: list[dict]) -> None:
    """Draw one of PANELS against the step from the rows of the log: training pairs as a line, held-out pairs on wrong and right claims as dots."""
    for label, key, color in PANELS[title]:
        for prefix, style, of in (
            ("", "-", "training"),
            ("eval_wrong_", "o--", "held-out, wrong claims"),
            ("eval_right_", "^:", "held-out, right claims"),
        ):
            rows = [row for row in history if prefix + key in row]
            axis.plot([row["step"] for row in rows], [row[prefix + key] for row in rows], style, color=color, label=f"{label}, {of}")
    if "loss" in title:
        axis.axhline(math.log(2), color="grey", linestyle=":", label="ln 2: has learned nothing")
    axis.set(title=title, xlabel="step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def draw_curves(history: list[dict], path: Path) -> None:
    """Draw all PANELS, and what to notice, into a PNG file, whole or not at all."""
    figure, axes = pyplot().subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, title in zip(axes.flat, PANELS):
        draw_panel(axis, title, history)
    figure.supxlabel(NOTICE, fontsize=10, wrap=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)


def svg(title: str, history: list[dict]) -> bytes:
    """Return one of PANELS as an SVG picture."""
    figure, axis = pyplot().subplots(figsize=(5.6, 3.7), layout="constrained")
    draw_panel(axis, title, history)
    picture = io.BytesIO()
    figure.savefig(picture, format="svg")
    return picture.getvalue()
