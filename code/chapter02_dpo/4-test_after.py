"""Step 4: look at the tuned model, and compare it with the base model.

    python code/chapter02_dpo/4-test_after.py

Reads:  output/dpo_results/final_model/, output/heldout_data.json, output/before.json, output/dpo_results/training_log.json,
        neutral.json beside this script; for --ask and --chat, output/base_model/
Writes: output/after.json   the same as before.json, for the tuned model
        output/report.html  all of it as one page: measures, curves, and every reply before and after
Time:   80 to 190 seconds with SmolLM2 on 2 cores

Asks the same questions as 2-test_before.py and measures the same things with the same code, then shows both side by side.
"""

from toolkit import console
from toolkit.chat import chat
from toolkit.files import write
from toolkit.measure import (
    QUESTION,
    changes,
    check_comparable,
    last_heldout,
    measure,
    read_before,
    read_heldout,
    read_log,
    show_changes,
    show_question,
    show_side_by_side,
)
from toolkit.models import as_conversation, ask, check_model, load_model
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
    # The questions of both sides: what only one of the two models was asked goes to the base model too, or is left out.
    asked = {question["prompt"]: question for question in before["questions"]}
    new = [question for question in (QUESTION, *args.ask) if question not in asked]
    if new and check_model(BASE_MODEL) != source:
        console.fail("output/base_model/ is another model than the one that was tuned; without --ask it is not needed")

    print("Loading fine-tuned model ...")
    model, tokenizer = load_model(FINAL_MODEL)
    after = {"base_model": source, "tuned_sha256": tuned_sha256} | measure(model, tokenizer, heldout, args.ask)
    write(AFTER, after)
    if new:
        replies = ask(*load_model(BASE_MODEL), list(map(as_conversation, new)))
        asked |= {prompt: {"prompt": prompt, "reply": reply} for prompt, reply in zip(new, replies)}
    before["questions"] = [asked[question["prompt"]] for question in after["questions"]]

    show_question(after, "Preference-aligned response")
    print()
    show_side_by_side(before, after)
    rows = changes(before, after)
    show_changes(rows)
    print(last_heldout(log["history"]))
    written = console.attempt("writing output/report.html", write_report, before, after, rows, log, heldout[0].get("direction", "polite"))
    print(f"Saved to: output/after.json{', and to look at: output/report.html' if written else ''}")


if __name__ == "__main__":
    console.run(main)
