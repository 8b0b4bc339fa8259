"""Files that are whole or absent, whatever happens while they are written; hashes; and the lock on a folder."""

import gc
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from toolkit.console import FIRST_PROCESS, fail
from toolkit.paths import made_by, short


def write(path: Path, data: object) -> None:
    """Write a text as it is, or anything else as JSON, in UTF-8, whole or not at all: to a temporary sibling, then renamed over path."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path, kind: str = "JSON", parse: Callable[[bytes], object] = json.loads) -> object:
    """Read a JSON file in any encoding of Unicode, or one of another kind, or end the script with a line that names it and what makes it."""
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        fail(f"{short(path)} is missing; run {made_by(path)} first")
    except (ValueError, RecursionError) as error:
        mend = "save it as UTF-8" if isinstance(error, UnicodeDecodeError) else "mend it"
        fail(f"{short(path)} is not valid {kind} ({error}); {mend}{or_again(path)}")


def or_again(path: Path) -> str:
    """Return how a mend of a file goes on: with the script that would make it again, if one does."""
    return f", or run {made_by(path)} again" if made_by(path) else ""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of weights in a folder, by its name."""
    return {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}


def replace_folder(new: Path, folder: Path) -> None:
    """Put a new folder, whole and on the disk, in the place of another."""
    old = set_aside(folder)
    restore_folder(folder)
    shutil.rmtree(old, ignore_errors=True)
    for path in new.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    gc.collect()  # Windows renames no folder of which a file is still mapped into a model that nobody needs any more
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Put a folder back that replace_folder() had just set aside when the process was killed."""
    if set_aside(folder).exists() and not folder.exists():
        set_aside(folder).rename(folder)


def set_aside(folder: Path) -> Path:
    """Return where replace_folder() keeps the old folder until the new one is in its place."""
    return folder.with_name(f".{folder.name}.old")


HELD = []  # locks last as long as the process


def lock(folder: Path) -> None:
    """Lock a folder until this process ends, however it ends, or end the script if another process has it.

    filelock takes what the system has: flock, or Windows' own locks; where a file system refuses those (Lustre, NFS, some mounts), a file that
    holds the number of the process and the name of its machine. Of several processes of one run the first locks for all.
    """
    if not FIRST_PROCESS:
        return
    from filelock import FileLock, SoftFileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    holder, soft, mend = folder / ".lock.pid", folder / ".lock.soft", "wait for it, or end it"
    try:
        try:
            HELD.append(FileLock(folder / ".lock", fallback_to_soft=False).acquire(blocking=False))
        except (Timeout, PermissionError):  # another run has it, perhaps another user's
            raise
        except OSError:  # whatever the system calls it: ENOSYS, ENOLCK, EOPNOTSUPP; a full disk refuses the file too
            holder, mend = soft, f"{mend}; if it ended without a trace, delete {short(soft)}"
            HELD.append(SoftFileLock(soft).acquire(blocking=False))
    except Timeout:
        process = " on ".join(holder.read_text().split()[:2]) if holder.exists() else "unknown"
        fail(f"another run trains into {short(folder)}/, process {process}; {mend}")
    if holder != soft:  # which filelock itself writes
        holder.write_text(str(os.getpid()))
