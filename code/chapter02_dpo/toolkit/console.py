"""How a script talks to the one who started it: flags, one-line errors, Ctrl-C, and text that a terminal can print."""

import codecs
import contextlib
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import field, fields
from functools import partial

FIRST_PROCESS = os.environ.get("RANK", "0") == "0"  # the one that prints and writes; others exist under accelerate launch only


def fail(message: str) -> None:
    """End the script with one line on stderr and exit status 1."""
    sys.exit(f"error: {message}")


def interrupted(*_) -> None:
    """End the script at Ctrl-C. As an exception, it could be swallowed by a library that is just being imported."""
    sys.stdout.flush()
    print("\nInterrupted. What was finished before is still there.", file=sys.stderr, flush=True)
    os._exit(130)


class Screen:
    """Standard output or error as a script may rely on it: a letter that the terminal has not is printed as "?", and where nothing can be printed
    any more (the terminal or the pipe was closed, the disk of a redirection is full), the script goes on without, after a line on the other one."""

    def __init__(self, stream):
        self.stream, self.write, self.flush = stream, partial(self.go_on, stream.write), partial(self.go_on, stream.flush)
        with contextlib.suppress(AttributeError):  # in a notebook's own process the streams are the notebook's
            stream.reconfigure(errors="replace")

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def go_on(self, work: Callable, *arguments):
        try:
            return work(*arguments)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # what is still in the buffer goes there too, or Python would stumble over it at its end
            os.close(nowhere)
            warn(f"nothing more can be printed here ({error.strerror}); going on without")


def warn(message: str) -> None:
    """Say in one line on stderr what went wrong, and go on."""
    print(f"warning: {message}", file=sys.stderr)


def attempt(what: str, work: Callable, *arguments) -> bool:
    """Do what a script can do without when all else is saved. Return whether it was done; if not, a line has said why."""
    try:
        work(*arguments)
    except Exception as error:
        reason = os_error(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}".splitlines()[0]
        warn(f"{what} failed ({reason}); all else of this run is saved")
        return False
    return True


def run(main: Callable, *arguments, explain: Callable[[Exception], None] = lambda error: None) -> None:
    """Run a script's main(), and end it with one line at Ctrl-C, or at an error that the reader can mend.

    explain() may know more about an error and end the script itself; what nobody explains is a fault of ours and keeps its traceback.
    """
    signal.signal(signal.SIGINT, interrupted if FIRST_PROCESS else signal.SIG_DFL)
    nowhere = open(os.devnull, "w")
    sys.stdout = Screen(sys.stdout or nowhere) if FIRST_PROCESS else nowhere
    sys.stderr = Screen(sys.stderr or nowhere)
    with contextlib.suppress(AttributeError):  # as above; what is typed may be UTF-8 although the settings say ASCII
        ascii_only = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if ascii_only else None, errors="replace")
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
