"""A run that is preempted, killed in part or in whole, and started again comes to what it would have come to."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mrpo.faults import FaultKind, read_faults
from mrpo.run_reading import RunStatus, list_checkpoints, read_state
from tests.integration.killed_run import (
    NUM_STEPS,
    TIMEOUT_S,
    Run,
    assert_same,
    kill_all,
    preempt,
    wait_until_gone,
    weights_in_memory,
)

logger = logging.getLogger(__name__)
SEED = "MRPO_KILL_SEED"  # of the moments; set it to repeat them


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def whole_run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    run = Run(cache, tmp_path_factory.mktemp("whole"))
    folder = run.finish()
    assert "no unfinished run under" in run.shown and "so a new one begins" in run.shown
    return folder


def test_a_preempted_run_whose_driver_is_killed_next_goes_on_to_the_bit(
    whole_run: Path, cache: Path, tmp_path: Path
) -> None:
    run = Run(cache, tmp_path)
    run.start()
    run.wait_until(lambda: run.num_steps >= 1)
    preempt(run)
    assert run.process.wait(TIMEOUT_S) == 143, run.shown
    assert read_state(run.folder).status == RunStatus.INTERRUPTED
    done = list_checkpoints(run.folder)[-1].step
    assert done == run.num_steps >= 1
    (preemption,) = read_faults(run.folder)
    assert (preemption.kind, preemption.recovery_s) == (FaultKind.PREEMPTED, None)

    run.start()
    family = run.stop_when(lambda: run.unfinished_checkpoint(after=done))
    run.process.send_signal(signal.SIGKILL)  # the driver alone
    run.process.wait(TIMEOUT_S)
    for process in family[1:]:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    assert len(family) > 5
    assert wait_until_gone(family) == []
    assert weights_in_memory(family) == []
    assert read_state(run.folder).status == RunStatus.RUNNING, "nobody could say anything else"

    folder = run.finish()
    assert f"resuming at step {done}" in run.shown
    assert_same(folder, whole_run)
    assert [item.name for item in (folder / "checkpoints").iterdir() if item.name.startswith(".")] == []
    (preemption,) = read_faults(folder)
    assert preemption.recovery_s is not None, "it was over when the run went on"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["checkpoint", "sync", "random"])
def test_a_run_killed_as_a_whole_at_any_moment_goes_on_to_the_bit(
    moment: str, whole_run: Path, cache: Path, tmp_path: Path
) -> None:
    seed = int(os.environ.get(SEED, random.randrange(2**32)))
    logger.warning("%s=%d", SEED, seed)  # pytest shows it where the test fails
    run, chance = Run(cache, tmp_path), random.Random(seed)
    run.start()
    after = chance.randint(1, NUM_STEPS - 2)
    run.wait_until(lambda: run.num_steps >= after)
    if moment == "checkpoint":
        family = run.stop_when(lambda: run.unfinished_checkpoint(after=after))
    elif moment == "sync":
        known = run.family()
        family = run.stop_when(lambda: weights_in_memory(known))
    else:
        time.sleep(chance.uniform(0.0, 1.0))
        family = run.stopped()
    kill_all(family)
    run.process.wait(TIMEOUT_S)
    if moment != "random":
        assert run.unfinished_checkpoint(after=after) if moment == "checkpoint" else weights_in_memory(family)
    assert wait_until_gone(family) == []
    assert_same(run.finish(), whole_run)
    assert weights_in_memory(family) == [], "the next run removes what nobody was left to remove"
