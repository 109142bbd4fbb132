"""Which run `resume` means."""

from __future__ import annotations

import logging
from pathlib import Path

from mrpo.errors import DataError
from mrpo.run_lock import RunLock
from mrpo.run_reading import RunStatus, read_state, require_current_format

log = logging.getLogger(__name__)

AUTO = "auto"


def find_resumable(runs_dir: str | Path, experiment: str) -> Path | None:
    """The newest run of `experiment` that can be gone on with: unfinished, of this format, free.

    One that was killed before its first checkpoint is among them: it begins again, in the same folder.
    """
    candidates: list[tuple[float, Path]] = []
    for folder in (Path(runs_dir).expanduser() / experiment).glob("*/"):
        try:
            state = read_state(folder)
            if state.status == RunStatus.FINISHED:
                continue
            require_current_format(folder, state)
        except DataError as error:
            log.warning("passed over: %s", error)
            continue
        if not RunLock.is_held(folder):
            candidates.append((state.created_s, folder))
    return max(candidates)[1].resolve() if candidates else None


def resumed_run(resume: str, runs_dir: str | Path, experiment: str) -> Path | None:
    """The run that `resume` means: a folder, or "auto" for the newest of `experiment` that can be gone on with.

    Returns:
        None: "auto", and there is none; a new run begins then, so that a scheduler may give one command each time.
    """
    if resume != AUTO:
        return Path(resume).expanduser()
    found = find_resumable(runs_dir, experiment)
    if found is None:
        log.warning("resume=auto: there is no unfinished run under %s/%s, so a new one begins", runs_dir, experiment)
    return found
