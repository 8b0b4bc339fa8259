"""Step 2: look at the base model before training.

    python code/chapter02_dpo/2-test_before.py

Reads:  output/base_model/, output/heldout_data.json; neutral.json, measures.json and judge.json beside this script
Writes: output/before.json  every question with its reply, every held-out claim with its scores, versions and seed
Time:   70 to 190 seconds with SmolLM2 on 2 cores

Asks the chapter's question and all held-out claims, prints some of the replies, and measures whether the model takes the user's side, when
the user is wrong and when the user is right: a small judge (toolkit/judge.py) reads its replies. None of these claims is trained on.
4-test_after.py does the same with the tuned model.
"""

from toolkit import console
from toolkit.files import write
from toolkit.measure import QUESTION, answers, measure, read_heldout, show_measures, show_question, show_replies
from toolkit.models import check_model, load_model
from toolkit.paths import BASE_MODEL, BEFORE


def main() -> None:
    flags = console.parser(__doc__)
    flags.add_argument("--ask", metavar="QUESTION", action="append", default=[], help="one more question of yours; may be repeated")
    args = flags.parse_args()

    source = check_model(BASE_MODEL)
    heldout = read_heldout()
    print("Loading base model ...")
    model, tokenizer = load_model(BASE_MODEL)
    questions = answers(model, tokenizer, [QUESTION, *args.ask])
    show_question(questions[0], "Raw response before tuning")
    before = {"base_model": source} | measure(model, tokenizer, (model, tokenizer), heldout, questions)
    write(BEFORE, before)

    show_replies(before)
    show_measures(before)
    print("Saved to: output/before.json")


if __name__ == "__main__":
    console.run(main)
