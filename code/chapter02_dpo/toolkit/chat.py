"""Talking to the base model and the tuned one at once."""

import sys

from toolkit.console import printable
from toolkit.models import as_conversation, ask, check_model, check_text, load_model
from toolkit.paths import BASE_MODEL, FINAL_MODEL


def chat() -> None:
    """Let the reader talk to both models at once, each with its own memory of the conversation."""
    check_model(BASE_MODEL)
    check_model(FINAL_MODEL)
    models = {"Base model": load_model(BASE_MODEL), "Tuned model": load_model(FINAL_MODEL)}
    conversations = {name: [] for name in models}
    print("Write something to both models; an empty line ends the chat.")
    while message := next(iter(sys.stdin.readline().splitlines()), "").strip():
        for name, (model, tokenizer) in models.items():
            check_text(message, tokenizer)
            conversations[name] = as_conversation(message, conversations[name])
            [(reply, _)] = ask(model, tokenizer, [conversations[name]])
            conversations[name].append({"role": "assistant", "content": reply})
            print(f"{name}: {printable(reply)}\n")
