"""Where everything is, and which script makes it. Found from this file's own place, so the scripts run from any folder."""

from pathlib import Path

CHAPTER = Path(__file__).resolve().parents[1]
ROOT = CHAPTER.parents[1]
OUTPUT = ROOT / "output"

BASE_MODEL = OUTPUT / "base_model"
PREFERENCE_DATA = OUTPUT / "preference_data.json"
CONTROL_DATA = OUTPUT / "control_data.json"
HELDOUT_DATA = OUTPUT / "heldout_data.json"
WRITTEN = OUTPUT / ".written.sha256"  # what step 1 wrote last: a sha256 and a name on each line
BEFORE = OUTPUT / "before.json"
AFTER = OUTPUT / "after.json"
REPORT = OUTPUT / "report.html"

RESULTS = OUTPUT / "dpo_results"
FINAL_MODEL = RESULTS / "final_model"
ADAPTER = RESULTS / "adapter"
RUN = RESULTS / "run.json"  # settings and data of the run that the checkpoints beside it are of
TRAINING_LOG = RESULTS / "training_log.json"
CURVES = RESULTS / "training_curves.png"

MADE_BY = {
    "0-download_model.py": [BASE_MODEL],
    "1-generate_data.py": [PREFERENCE_DATA, CONTROL_DATA, HELDOUT_DATA],
    "2-test_before.py": [BEFORE],
    "3-train_dpo.py": [FINAL_MODEL, TRAINING_LOG],
    "3-train_dpo.py without --resume": [RUN],
}


def made_by(path: Path) -> str | None:
    """Return the script that makes a file or folder of output/, told by its name or by that of the folder it lies in; None for other files."""
    return next((script for script, made in MADE_BY.items() if {path.name, path.parent.name} & {one.name for one in made}), None)


def short(path: Path) -> str:
    """Return a path as messages name it: from the repository's root, or whole if it lies elsewhere."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
