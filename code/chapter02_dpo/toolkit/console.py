"""How a script talks to the one who started it: flags, one-line errors, Ctrl-C, and text that a terminal can print."""

import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import field, fields

FIRST_PROCESS = os.environ.get("RANK", "0") == "0"  # the one that prints and writes; others exist under accelerate launch only


def fail(message: str) -> None:
    """End the script with one line on stderr and exit status 1."""
    sys.exit(f"error: {message}")


def interrupted(*_) -> None:
    """End the script at Ctrl-C. As an exception, it could be swallowed by a library that is just being imported."""
    sys.stdout.flush()
    print("\nInterrupted. What was finished before is still there.", file=sys.stderr, flush=True)
    os._exit(130)


def run(main: Callable, *arguments, explain: Callable[[Exception], None] = lambda error: None) -> None:
    """Run a script's main(), and end it with one line at Ctrl-C, or at an error that the reader can mend.

    explain() may know more about an error and end the script itself; what nobody explains is a fault of ours and keeps its traceback.
    """
    signal.signal(signal.SIGINT, interrupted if FIRST_PROCESS else signal.SIG_DFL)
    if not FIRST_PROCESS:
        sys.stdout = open(os.devnull, "w")
    try:
        main(*arguments)
    except Exception as error:
        explain(error)
        if isinstance(error, OSError):  # a full disk, a folder that may not be written to
            fail(f"{os_error(error)}; mend that and run this again")
        raise


def os_error(error: OSError) -> str:
    """Return in words which file the system refused, and why."""
    return f"{error.filename or 'output/'}: {error.strerror or str(error).splitlines()[0]}"


def parser(docstring: str) -> ArgumentParser:
    """Return a parser of flags that introduces itself by the first line of a script's docstring."""
    return ArgumentParser(allow_abbrev=False, description=docstring.split("\n")[0])


def flag(default, help: str, choices: list[str] | None = None):
    """A field of a dataclass that read_flags() turns into a command-line flag."""
    return field(default=default, metadata={"help": help, "choices": choices})


def read_flags(config: type, docstring: str):
    """Return an instance of a dataclass whose fields, made by flag(), were given on the command line.

    Our own, since argparse ends a slip with one line that begins with "error:", and needs no import that --help would wait for;
    tyro prints a box, and transformers' HfArgumentParser comes with torch.
    """
    flags = parser(docstring)
    for item in fields(config):
        name, help = "--" + item.name.replace("_", "-"), item.metadata["help"]
        if item.type is bool:
            flags.add_argument(name, action="store_true", help=help)
        else:
            default = "" if item.default is None else f" (default: {item.default})"
            flags.add_argument(name, type=item.type, choices=item.metadata["choices"], default=item.default, help=help + default)
    try:
        return config(**vars(flags.parse_args()))
    except ValueError as error:  # raised by the dataclass itself, on values that cannot be
        flags.error(str(error))


def printable(text: str) -> str:
    """Return text without control characters, so that a reply cannot move the cursor or colour the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def is_unicode(text: str) -> bool:
    """Return whether text can be encoded: JSON and the command line can carry half of a character."""
    return text.encode(errors="ignore").decode() == text
