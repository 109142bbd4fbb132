"""Which run `resume` means."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from mrpo.errors import DataError, NothingToDoError, ResourceError
from mrpo.run_lock import RunLock
from mrpo.run_reading import RunState, RunStatus, has_begun, read_state, require_current_format

log = logging.getLogger(__name__)

AUTO = "auto"
HELD_S = 120.0  # for the process before to end, or for a file system to notice that its node is gone
POLL_S = 1.0


def resumed_run(
    resume: str, runs_dir: str | Path, experiment: str, run_name: str | None, *, held_s: float = HELD_S
) -> Path | None:
    """The run that `resume` means: a folder, or "auto" for the run of a name, or for the newest of an experiment.

    "auto" is what a scheduler may give again and again. With a name it means that run and no other; without one the
    newest run alone counts, so that an older one, given up long ago, is never picked up.

    Args:
        resume: a run folder, or "auto".
        runs_dir: folder of experiments.
        experiment: folder of runs.
        run_name: of the run, or None.
        held_s: how long to wait for another process to leave the run.

    Returns:
        None: "auto", and there is none to go on with; a new run begins then.

    Raises:
        NothingToDoError: the run of that name is finished.
        DataError: the run is damaged, or of another version's format.
        ResourceError: another process does not leave the run, or its folder may not be written.
    """
    if resume != AUTO:
        return Path(resume).expanduser()
    runs = Path(runs_dir).expanduser().resolve() / experiment
    folder = _newest(runs) if run_name is None else runs / run_name
    if folder is None:
        log.warning("resume=auto: there is no unfinished run under %s, so a new one begins", runs)
        return None
    if not has_begun(folder):
        log.warning("resume=auto: there is no run %s yet, so it begins", folder)
        return None
    state = _free(folder, held_s)
    if state.status != RunStatus.FINISHED:
        require_current_format(folder, state)
        return folder
    if run_name is not None:
        raise NothingToDoError(
            f"{folder} is finished after {state.step} steps, nothing is left to do; another run needs another "
            f"run_name, and to train this one further: resume={folder} num_steps=<more>"
        )
    log.warning(
        "resume=auto: there is no unfinished run under %s, whose newest, %s, is finished, so a new one begins",
        runs,
        folder.name,
    )
    return None


def _newest(runs: Path) -> Path | None:
    """The run that began last, whatever became of it."""
    begun: list[tuple[float, str]] = []
    for folder in runs.glob("*/"):
        if has_begun(folder):
            begun.append((_created_s(folder), folder.name))
        else:
            log.warning("resume=auto: passed over: %s has no record of a run", folder)
    return runs / max(begun)[1] if begun else None


def _created_s(folder: Path) -> float:
    """When a run began; where its state cannot be read, as the file says that is written once."""
    try:
        return read_state(folder).created_s
    except DataError:
        once = folder / "environment.json"
        return (once if once.exists() else folder).stat().st_mtime


def _free(folder: Path, held_s: float) -> RunState:
    """The state of a run when no other process writes it any more, or when it is finished."""
    state, ends_at, is_told = read_state(folder), time.monotonic() + held_s, False
    while state.status != RunStatus.FINISHED and RunLock.is_held(folder):
        if time.monotonic() > ends_at:
            raise ResourceError(
                f"{folder} is still being written by {RunLock.holder(folder)} after {held_s:g} s; end that process, or "
                "wait for it: it goes on with the run, and a second one beside it would be another run"
            )
        if not is_told:
            log.warning("%s is being written by %s; waiting up to %g s for it", folder, RunLock.holder(folder), held_s)
            is_told = True
        time.sleep(POLL_S)
        state = read_state(folder)
    return state
