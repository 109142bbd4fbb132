"""Files that are whole or absent: write under a temporary name, fsync, rename, fsync the folder."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"
OUTDATED_SUFFIX = f".outdated{TEMPORARY_SUFFIX}"
REMOVED_SUFFIX = f".removed{TEMPORARY_SUFFIX}"
REMOVAL_TRIES = 5

log = logging.getLogger(__name__)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by a file that holds `data`; a reader sees the old content or the new, never a part.

    Raises:
        OSError: no space or no permission; the old file is untouched and the temporary one removed.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_with(path, write)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place.

    The process id in the temporary name keeps two writers of one file apart; a leading dot and the suffix let
    `remove_leftovers` recognise what a killed process left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        write(temporary)
        fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def commit_folder(temporary: Path, final: Path) -> None:
    """Put a filled folder in place of `final`, every file in it on disk first."""
    for root, _, files in os.walk(temporary):
        for name in files:
            fsync(Path(root, name))
        fsync(Path(root))
    if final.exists():  # a rename cannot replace a folder that holds files
        outdated = final.with_name(f".{final.name}{OUTDATED_SUFFIX}")
        os.replace(final, outdated)
        os.replace(temporary, final)
        remove_tree(outdated)
    else:
        os.replace(temporary, final)
    fsync(final.parent)


def remove_leftovers(folder: Path) -> list[str]:
    """Clear away what a killed process left directly in `folder`; returns the names of what was there.

    A folder that was set aside and never replaced is put back; every other temporary file or folder goes.
    """
    found = []
    for item in sorted(folder.glob(f".*{TEMPORARY_SUFFIX}")):
        found.append(item.name)
        original = folder / item.name.removesuffix(OUTDATED_SUFFIX).removeprefix(".")
        if item.name.endswith(OUTDATED_SUFFIX) and not original.exists():
            os.replace(item, original)
        elif item.is_dir():
            remove_tree(item)
        else:
            item.unlink()
    return found


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it, if it is there; what resists is logged and left.

    A process that still writes into it can make that fail: who is killed may leave one that lives some seconds longer.
    """
    hidden = folder  # already, where an earlier removal did not come to its end
    if not folder.name.endswith(REMOVED_SUFFIX):
        hidden = folder.with_name(f".{folder.name}.{os.getpid()}{REMOVED_SUFFIX}")
        try:
            os.replace(folder, hidden)  # a kill in the middle leaves no half of a folder under its own name
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("%s cannot be removed (%s); remove it by hand", folder, error)
            return
    for tries_left in reversed(range(REMOVAL_TRIES)):
        try:
            shutil.rmtree(hidden)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if not tries_left:
                log.warning("%s cannot be removed (%s); remove it by hand", hidden, error)


def fsync(path: Path) -> None:
    """Have the kernel put a file or a folder's entries on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
