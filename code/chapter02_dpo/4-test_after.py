"""Step 4: look at the tuned model, and compare it with the base model.

    python code/chapter02_dpo/4-test_after.py

Reads:  output/dpo_results/final_model/, output/heldout_data.json, output/before.json, output/dpo_results/training_log.json,
        neutral.json, measures.json and judge.json beside this script; output/base_model/, which judges the replies
Writes: output/after.json   the same as before.json, for the tuned model
        output/report.html  all of it as one page: measures, curves, and every reply before and after
Time:   70 to 190 seconds with SmolLM2 on 2 cores

Asks the same questions as 2-test_before.py and measures the same things with the same code, then shows both side by side.
"""

from toolkit import console
from toolkit.chat import chat
from toolkit.compare import (
    changes,
    check_comparable,
    data_changed,
    last_heldout,
    read_before,
    read_log,
    show_changes,
    show_side_by_side,
    trained_direction,
    turned,
)
from toolkit.files import write
from toolkit.measure import QUESTION, answers, in_words, measure, read_heldout, show_question
from toolkit.models import check_model, load_model
from toolkit.paths import AFTER, BASE_MODEL, FINAL_MODEL
from toolkit.report import write_report


def main() -> None:
    flags = console.parser(__doc__)
    flags.add_argument("--chat", action="store_true", help="talk to the base and the tuned model, and do nothing else")
    flags.add_argument("--ask", metavar="QUESTION", action="append", default=[], help="one more question of yours; may be repeated")
    args = flags.parse_args()
    if args.chat:
        return chat()

    before, log = read_before(), read_log()
    source = check_model(FINAL_MODEL)
    tuned_sha256 = source.pop("tuned_sha256")
    heldout = read_heldout()
    check_comparable(before, source, heldout)
    if check_model(BASE_MODEL) != source:
        console.fail("output/base_model/ is another model than the one that was tuned, which judges the replies; run 0, 2 and 3 again")

    print("Loading fine-tuned model ...")
    tuned = load_model(FINAL_MODEL)
    questions = answers(*tuned, [QUESTION, *args.ask])
    show_question(questions[0], "Preference-aligned response")
    base = load_model(BASE_MODEL)
    after = {"base_model": source, "tuned_sha256": tuned_sha256} | measure(*tuned, base, heldout, questions, before["own_replies"])
    after["direction"] = trained_direction(log, heldout)  # by whose measure it is judged
    write(AFTER, after)
    # The questions of both sides: what only the tuned model was asked goes to the base model too; what only that was asked is left out.
    asked = {question["prompt"]: question for question in before["questions"]}
    new = answers(*base, [question["prompt"] for question in questions if question["prompt"] not in asked])
    asked |= {question["prompt"]: question for question in new}
    before["questions"] = [asked[question["prompt"]] for question in questions]

    print()
    show_side_by_side(before, after)
    rows, affirmed = changes(before, after), turned(before, after)
    print(in_words(after["direction"]))
    show_changes(rows, affirmed)
    print(last_heldout(log))
    changed = data_changed(log)
    for name in changed:
        print(f"{name} is not what this model was trained on: train again before you credit it with what you see here.")
    written = console.attempt("writing output/report.html", write_report, before, after, rows, affirmed, log, changed)
    print(f"Saved to: output/after.json{', and to look at: output/report.html' if written else ''}")


if __name__ == "__main__":
    console.run(main)
