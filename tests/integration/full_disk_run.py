"""`python -m tests.integration.full_disk_run <world> <disk>`: a run on a disk that fills up and is emptied again.

A real learner, the real run folder and its checkpoints; `disk` is small, and nothing else is on it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from learner.checkpoint import load, snapshot, write
from learner.step import train_step
from mrpo.checkpoints import Checkpoints
from mrpo.config import CheckpointConfig, Config, plain
from mrpo.errors import ResourceError
from mrpo.faults import FAULTS_FILE, FaultKind, FaultLog, read_faults
from mrpo.run_folder import RunFolder
from mrpo.run_reading import list_checkpoints
from tests.integration.learner_world import completions, make, spec


class LocalLearner:
    """A rank in this process, behind the methods of a group of them."""

    def __init__(self, rank: Any) -> None:
        self.rank = rank
        self._contents: Any = None

    async def save(self, folder: str) -> None:
        raise AssertionError("checkpoints are asynchronous")

    async def snapshot(self) -> None:
        self._contents = snapshot(self.rank)

    async def write(self, folder: str) -> None:
        await asyncio.to_thread(write, self._contents, Path(folder))


def fill(file: Path) -> None:
    """Take all that is left of the disk."""
    with file.open("ab", buffering=0) as filler:
        for size in (2**20, 2**12, 1):
            while True:
                try:
                    filler.write(b"\0" * size)
                except OSError:
                    break


async def run(world: Path, disk: Path) -> None:
    """One checkpoint is written, one is cut off by a full disk, one finds none, one is written again."""
    learner, samples = LocalLearner(make(spec(world))), completions(world)
    folder = RunFolder.create(disk, "full", plain(Config()))
    faults = FaultLog(folder.path / FAULTS_FILE)
    config = CheckpointConfig(keep_last=1)
    checkpoints = Checkpoints(learner=learner, recorder=folder, config=config, faults=faults)
    filler = disk / "filler"

    async def step(number: int) -> None:
        train_step(learner.rank, samples, progress=0.0)
        folder.log_metrics(number, {"policy/loss": 0.0})
        await checkpoints.save(number)

    await step(1)
    await checkpoints.settle()
    await step(2)
    started = time.monotonic()
    while not list(folder.path.glob("checkpoints/.step_2.*/learner/weights*")):
        assert time.monotonic() - started < 60.0, "the write has not begun"
        await asyncio.sleep(0.001)
    fill(filler)  # in the middle of the write
    await checkpoints.settle()
    assert [item.name for item in (folder.path / "checkpoints").iterdir()] == ["step_1"], "its half is gone"
    fill(filler)
    try:
        folder.log_metrics(3, {"policy/loss": 0.0})
    except ResourceError as error:
        assert "No space left on device; the run ends here" in str(error), error
    else:
        raise AssertionError("a full disk took a line of metrics")
    filler.unlink()
    folder.close()

    folder = RunFolder.open(folder.path)
    assert folder.state.step in (2, 3)  # what room was left in the file's last block may have taken the line
    found = folder.latest_good_checkpoint(lambda bad, reason: None)
    assert found is not None and found.step == 1
    folder.rewind(1)
    load(learner.rank, found.path)
    checkpoints.recorder = folder
    await checkpoints.restart(1)
    await step(2)
    await checkpoints.finish(2)
    assert [checkpoint.step for checkpoint in list_checkpoints(folder.path)] == [2]
    (fault,) = read_faults(folder.path)
    assert (fault.kind, fault.who) == (FaultKind.CHECKPOINT_FAILED, "step_2"), fault
    assert "No space left on device" in fault.detail, fault
    assert fault.recovery_s is not None
    folder.close()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), Path(sys.argv[2])))
    sys.stdout.write("done\n")
