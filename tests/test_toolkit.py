"""The package beside the scripts: its floors, that nothing stands twice, the lock, and that nothing needs what only POSIX has."""

import ast
import errno
import json
import os
import re
import subprocess
import sys
from collections import defaultdict

import pytest

import toolkit
from conftest import CHAPTER, SCRIPTS, Chapter
from test_faults import use_few_claims
from toolkit import files

MODULES = {path.stem: path for path in sorted((CHAPTER / "toolkit").glob("*.py")) if path.stem != "__init__"}
FLOOR = {
    name: int(floor) for floor, names in re.findall(r"floor (\d)  ([a-z_, ]+?)(?:  |$)", toolkit.__doc__, re.MULTILINE) for name in names.split(", ")
}


def imported(path) -> set[str]:
    """Return the modules of the toolkit that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names |= {f"toolkit.{alias.name}" for alias in node.names} if node.module == "toolkit" else {node.module}
    return {name.removeprefix("toolkit.") for name in names if name.startswith("toolkit.")}


def test_every_module_has_a_floor():
    assert FLOOR.keys() == MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downwards(name):
    assert all(FLOOR[other] < FLOOR[name] for other in imported(MODULES[name])), imported(MODULES[name])


def test_scripts_use_the_toolkit_and_step_1_stands_alone():
    assert {name for path in SCRIPTS.values() for name in imported(path)} <= MODULES.keys()
    assert not imported(SCRIPTS["1"]) and all(imported(SCRIPTS[number]) for number in "0234")


def definitions(path):
    """Return every function, class, and constant of a file as (name, what it is without its name and docstring)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not (node.name == "main" or node.name.startswith(("on_", "__"))):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield node.name, ast.dump(ast.Module(body, []))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").isupper():
            yield node.targets[0].id, ast.dump(node.value)


def test_nothing_stands_twice():
    """Neither by its name nor, beyond a line, by what it does."""
    places = defaultdict(set)
    for path in [*SCRIPTS.values(), *MODULES.values()]:
        for name, content in definitions(path):
            places[name].add(path.name)
            if len(content) > 150:
                places[content].add(path.name)
    assert len(places) > 200
    assert not {what: where for what, where in places.items() if len(where) > 1}


def test_a_lock_is_given_back_when_its_process_ends(tmp_path):
    """However it ends; and while it lives, nobody else gets it."""
    code = f"import sys; sys.path.insert(0, {str(CHAPTER)!r}); from pathlib import Path; from toolkit.files import lock\n"
    code += f"lock(Path({str(tmp_path)!r})); print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(SystemExit, match=f"error: another run trains into {tmp_path}/, process {process.pid}; wait for it, or end it"):
            files.lock(tmp_path)
        process.kill()
    files.lock(tmp_path)
    assert (tmp_path / ".lock.pid").read_text() == str(os.getpid())
    files.HELD.pop().lock.release()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    """Where flock is not there (Lustre, some NFS), a file takes its place: a second run is still refused."""
    import fcntl

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    files.lock(tmp_path)
    with pytest.raises(SystemExit, match="error: another run trains into"):
        files.lock(tmp_path)
    files.HELD.pop().lock.release()


# A stand-in for native Windows: for our own files there is no fcntl, no resource, and nothing in os that Windows lacks; and a file that this
# process has open or mapped, or a folder with such a file, can be neither renamed nor replaced nor removed.
NOT_ON_WINDOWS = """
import builtins, importlib, os, sys, types
real_import, missing = builtins.__import__, ("sync", "fork", "getuid", "geteuid", "chown", "fchmod", "mkfifo", "killpg", "wait4", "uname")

def is_ours(namespace):
    return "chapter02_dpo" in str((namespace or {}).get("__file__", ""))

def block(name, globals=None, *rest, **named):
    if is_ours(globals):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ImportError(f"No module named {name!r} on Windows")
        if name == "os":
            copy = types.ModuleType("os")
            copy.__dict__.update({key: value for key, value in vars(os).items() if key not in missing})
            return copy
    return real_import(name, globals, *rest, **named)

builtins.__import__ = block

def in_use():
    held = []
    for number in os.listdir("/proc/self/fd"):
        try:
            held.append(os.readlink("/proc/self/fd/" + number))
        except OSError:
            pass
    with open("/proc/self/maps") as maps:
        return held + [line.split(None, 5)[5].rstrip() for line in maps if line.count("/")]

def guarded(function):
    def guard(path, *others, **options):
        for one in (path, *others):
            if isinstance(one, (str, os.PathLike)) and options.get("dir_fd") is None:
                whole = os.path.abspath(one)
                if "/output" in whole and any(name == whole or name.startswith(whole + "/") for name in in_use()):
                    raise PermissionError(13, "The process cannot access the file because it is being used", whole)
        return function(path, *others, **options)
    return guard

for name in ("rename", "replace", "unlink", "remove", "rmdir"):
    setattr(os, name, guarded(getattr(os, name)))
"""


@pytest.mark.slow
def test_all_five_scripts_without_what_only_posix_has(tiny_model, tmp_path):
    (tmp_path / "windows").mkdir()
    (tmp_path / "windows/sitecustomize.py").write_text(NOT_ON_WINDOWS)
    chapter = Chapter(tmp_path / "a chapter")
    path = str(tmp_path / "windows")
    chapter.ok(0, "--model", str(tiny_model), PYTHONPATH=path)
    chapter.ok(0, "--model", str(tiny_model), "--force", PYTHONPATH=path)
    chapter.ok(1, PYTHONPATH=path)
    use_few_claims(chapter)
    chapter.ok(2, PYTHONPATH=path)
    chapter.ok(3, "--max-steps", "5", PYTHONPATH=path)
    chapter.ok(4, PYTHONPATH=path)
    assert json.loads((chapter.output / "dpo_results/training_log.json").read_text())["peak_memory_gb"] > 0.1
    assert (chapter.output / "report.html").stat().st_size > 10_000

    chapter.ok(3, "--max-steps", "25", "--lora", PYTHONPATH=path)  # over the old results

    # The stand-in works: the same scripts fail on it as soon as one of these is used.
    held = "held = open(__file__.split('code')[0] + 'output/held', 'w'); os.replace(held.name, held.name + '2')"
    for module, line in (("files", "import fcntl"), ("files", "import os; os.sync()"), ("files", held)):
        source = chapter.root / f"code/chapter02_dpo/toolkit/{module}.py"
        text = source.read_text()
        source.write_text(text + f"\n{line}\n")
        done = chapter.run(0, PYTHONPATH=path)
        assert done.returncode == 1 and re.search("on Windows|has no attribute 'sync'|is being used", done.stderr), done.stderr
        source.write_text(text)
