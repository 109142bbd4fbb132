"""The folder `checkpoints/` of a run: one appears whole, old ones go, damaged ones are passed over."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mrpo.atomic import commit_folder, remove_tree
from mrpo.errors import DataError, ResourceError
from mrpo.manifest import check_manifest
from mrpo.run_reading import Checkpoint, list_checkpoints

FOLDER = "checkpoints"
DAMAGED_SUFFIX = ".damaged"  # of a checkpoint that was passed over; nothing reads it

OnDamaged = Callable[[Checkpoint, str], None]  # told of a checkpoint that is passed over, and of what is wrong with it


@contextmanager
def new_checkpoint(run: Path, step: int) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `checkpoints/step_N` when the block ends without an error.

    Raises:
        ResourceError: it cannot be made or put in place; nothing is left of it.
    """
    folder = run / FOLDER
    # The process id keeps the writers of a killed run, which may outlive it by seconds, out of its successor's folder.
    temporary = folder / f".step_{step}.{os.getpid()}.tmp"
    remove_tree(temporary)
    try:
        temporary.mkdir()
        yield temporary
        commit_folder(temporary, folder / f"step_{step}")
    except OSError as error:
        remove_tree(temporary)
        raise ResourceError(f"no checkpoint can be put into {folder}: {error}") from error
    except BaseException:
        remove_tree(temporary)
        raise


def remove_old(run: Path, *, keep_last: int, best: int | None) -> None:
    """Remove all but so many newest checkpoints and that of step `best`."""
    for old in list_checkpoints(run)[:-keep_last]:
        if old.step != best:
            remove_tree(old.path)


def newest_good(run: Path, on_damaged: OnDamaged, given_up: threading.Event | None = None) -> Checkpoint | None:
    """The newest checkpoint whose files are all as they were written; None where the run has no checkpoint.

    Newer ones that are damaged are set aside as `step_N.damaged`, once a good one is found.

    Raises:
        DataError: there are checkpoints and every one is damaged; nothing is set aside then.
        GivenUpError: `given_up` is set.
    """
    damaged: list[tuple[Checkpoint, str]] = []
    for checkpoint in reversed(list_checkpoints(run)):
        try:
            check_manifest(checkpoint.path, given_up=given_up)
        except DataError as error:
            damaged.append((checkpoint, str(error)))
            on_damaged(checkpoint, str(error))
            continue
        for bad, _ in damaged:
            aside = bad.path.with_name(bad.path.name + DAMAGED_SUFFIX)
            remove_tree(aside)
            os.replace(bad.path, aside)
        return checkpoint
    if damaged:
        reasons = "; ".join(reason for _, reason in damaged)
        raise DataError(
            f"no checkpoint of {run} is whole ({reasons}); restore one from a copy, or start a new run "
            f"(its model may still be in {damaged[0][0].path / 'hf'})"
        )
    return None
