"""What the five scripts have in common: how they open, --help, flags, and what they import."""

import ast
import subprocess
import sys

import pytest

from conftest import ROOT, SCRIPTS

EVERY_SCRIPT = pytest.mark.parametrize("number", sorted(SCRIPTS))


def test_there_are_five_scripts():
    assert [path.name for path in SCRIPTS.values()] == [
        "0-download_model.py",
        "1-generate_data.py",
        "2-test_before.py",
        "3-train_dpo.py",
        "4-test_after.py",
    ]


@EVERY_SCRIPT
def test_docstring_says_command_reads_writes_and_time(number):
    docstring = ast.get_docstring(ast.parse(SCRIPTS[number].read_text()))
    assert docstring.startswith(f"Step {number}: ")
    for part in (f"python code/chapter02_dpo/{SCRIPTS[number].name}", "Reads:", "Writes:", "Time:"):
        assert part in docstring


@EVERY_SCRIPT
def test_imports_no_other_script(number):
    for node in ast.walk(ast.parse(SCRIPTS[number].read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any("chapter02" in name or name[:1].isdigit() or name.startswith(".") for name in names)
        assert not (isinstance(node, ast.Attribute) and node.attr in ("import_module", "run_path", "spec_from_file_location"))


@EVERY_SCRIPT
def test_help_answers_without_torch(number):
    code = (
        "import os, runpy, sys; sys.argv = [sys.argv[1], '--help']; sys.path[0] = os.path.dirname(sys.argv[0])\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'trl', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code, str(SCRIPTS[number])], capture_output=True, text=True, check=True).stdout
    assert out.startswith("usage: " + SCRIPTS[number].name) and out.endswith("HEAVY []\n")


@EVERY_SCRIPT
def test_unknown_flag_is_an_error(chapter, number):
    assert "error: unrecognized arguments: --epoch" in chapter.error(number, "--epoch=1" if number == "3" else "--epoch")


@pytest.mark.parametrize(
    "number, line",
    [
        (2, "error: output/base_model/ is missing; run 0-download_model.py first"),
        (3, "error: output/base_model/ is missing; run 0-download_model.py first"),
        (4, "error: output/before.json is missing; run 2-test_before.py first"),
    ],
)
def test_missing_input_names_the_script_that_makes_it(chapter, number, line):
    assert chapter.error(number) == line


def test_requirements_are_pinned_exactly():
    for name in ("requirements.txt", "tests/requirements.txt"):
        lines = (ROOT / name).read_text().split()
        assert lines and all(len(line.split("==")) == 2 and "*" not in line for line in lines)
    assert "torch==2.13.0" in (ROOT / "requirements.txt").read_text().split()
