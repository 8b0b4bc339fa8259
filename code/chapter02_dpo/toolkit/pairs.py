"""The files of preference pairs: reading them in any form, or a line for each item that cannot be trained on."""

import csv
import io
import json
from pathlib import Path

from toolkit.console import fail, printable
from toolkit.files import or_again, read_json
from toolkit.forms import KNOWN_COLUMNS, as_pair, is_empty
from toolkit.models import special_tokens
from toolkit.paths import CONTROL_DATA, HELDOUT_DATA, PREFERENCE_DATA, short

TABLES = (".csv", ".tsv", ".parquet")
DATA_FILES = (".json", ".jsonl", ".ndjson", *TABLES)


def data_file(data: str | None) -> Path:
    """Return the file of pairs that --data names, preference_data.json without it, or end the script if it cannot be one."""
    if data is None:
        return PREFERENCE_DATA
    path = Path(data).absolute()
    if not path.is_file():
        fail(f"--data {data}: there is no such file; of a data set of the hub, download a file first: hf download --repo-type dataset {data}")
    if path.suffix.lower() not in DATA_FILES:
        fail(f"--data {data} must end in {', '.join(DATA_FILES[:-1])} or {DATA_FILES[-1]}; unpack it, or save it as one of these")
    if path.name in (CONTROL_DATA.name, HELDOUT_DATA.name):
        fail(f"--data {data} has the name of a file that is read beside it; copy it to another name")
    return path


def read_pairs(path: Path, tokenizer, longest: int) -> list[dict]:
    """Read preference pairs as chat messages, or end the script with up to ten lines, one for each item that cannot be trained on.

    The file is a list of objects, in one of the forms of toolkit/forms.py. TRL applies the chat template to messages only.
    """
    rows, name = read_rows(path), short(path)
    if not isinstance(rows, list) or not rows:
        fail(f'{name} must be a list of {{"prompt", "chosen", "rejected"}} objects that is not empty; mend it{or_again(path)}')
    special, pairs, problems, numbers = special_tokens(tokenizer), [], [], {}
    for number, row in enumerate(rows, 1):
        try:
            pair = as_pair(row)
            check_as_seen(pair, row, tokenizer, special, longest)
            prompt, chosen, rejected = (str(pair[key]) for key in ("prompt", "chosen", "rejected"))
            if other := numbers.get((prompt, rejected, chosen)):
                raise ValueError(f"contradicts item {other}, where chosen and rejected are exchanged; take one of them out")
            numbers[prompt, chosen, rejected] = number
            pairs.append(pair)
        except (ValueError, RecursionError) as error:
            problems.append(f"{name}, item {number}: {error}")
    if problems:
        if len(problems) > 10:
            problems[9:] = [f"{name} has {len(problems) - 9} more items that cannot be trained on"]
        fail("\nerror: ".join(problems))
    if passed_over := sorted({column for row in rows for column in row if not is_empty(row[column])} - KNOWN_COLUMNS):
        print(printable(f"{name}: not trained on are the columns {', '.join(passed_over)[:200]}"))
    return pairs


def check_as_seen(pair: dict, row: dict, tokenizer, special: list[str], longest: int) -> None:
    """Raise ValueError if the model would not see a pair as it stands there: what its chat template refuses or leaves out, what is too long."""
    from jinja2 import TemplateError

    for key, messages in pair.items():
        for token in special:
            if any(token in message["content"] for message in messages):
                column = next((column for column in row if column in KNOWN_COLUMNS and token in str(row[column])), key)
                raise ValueError(f'"{column}" holds {token}, which is no text to the model; take it out')
    has_system = pair["prompt"][0]["role"] == "system"
    mend = "write what the system says into the user's first message" if has_system else "let user and assistant take turns, the user first"
    for key in ("chosen", "rejected"):
        try:
            text = tokenizer.apply_chat_template(pair["prompt"] + pair[key], tokenize=False)
        except TemplateError as error:
            raise ValueError(f"the chat template of this model refuses it ({str(error).splitlines()[0]}); {mend}") from None
        seen = "".join(text.split())
        for message in pair["prompt"] + pair[key]:
            if "".join(message["content"].split()) in seen or message in pair["prompt"] and message["role"] == "assistant":
                continue  # an earlier answer may lose its <think>...</think>, as it does when one chats
            if message["role"] == "system":
                raise ValueError(f"the chat template of this model leaves out what the system says; {mend}")
            part = f'a part of "{key}"' if message in pair[key] else "a part of what the user says"
            raise ValueError(f"the chat template of this model leaves out {part}, as a rule <think>...</think>; take it out")
        tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if tokens > longest:
            raise ValueError(f"has {tokens:,} tokens, and the model reads at most {longest:,}; shorten it")


def read_rows(path: Path) -> object:
    """Return what a file holds: JSON or JSON Lines in any encoding of Unicode, a table with commas, semicolons or tabs, or Parquet."""
    kind = {".csv": "CSV", ".tsv": "CSV", ".parquet": "Parquet"}.get(path.suffix.lower(), "JSON")
    return read_json(path, kind, {"CSV": from_csv, "Parquet": from_parquet, "JSON": from_json}[kind])


def from_json(content: bytes) -> object:
    """Return the list of a JSON file, or the objects of JSON Lines, whatever the file is called."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
    rows = []
    for number, line in enumerate(content.decode(json.detect_encoding(content)).split("\n"), 1):
        if line := line.strip("\ufeff \t\r"):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return rows


def from_csv(content: bytes) -> list[dict]:
    """Return the rows of a table as texts. Not through datasets, which turns 5 into a number, and None, NA and null into nothing."""
    text = content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
    csv.field_size_limit(2**31 - 1)
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=text.split("\n")[0].count), strict=True)
        rows = list(table)
    except csv.Error as error:
        raise ValueError(f"line {table.reader.line_num}: {error}") from None
    if len(set(table.fieldnames or [])) < len(table.fieldnames or []):
        raise ValueError("the first line has a name twice")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"item {number} has {'more' if None in row else 'fewer'} fields than the first line has names; put texts into quotes")
    return [{name.strip(): value for name, value in row.items()} for row in rows]


def from_parquet(content: bytes) -> list[dict]:
    """Return the rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except OSError as error:
        raise ValueError(error) from None


def item_names(path: Path, rows: list[dict]) -> list[str]:
    """Return what messages call each item of a file: "output/preference_data.json item 7"."""
    return [f"{short(path)} item {number}" for number in range(1, len(rows) + 1)]
