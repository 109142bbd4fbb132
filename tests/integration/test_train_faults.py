"""A whole training whose learner hangs once and dies once: the rank is named, and the results are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mrpo.faults import FaultKind, read_faults
from mrpo.rows import read_rows
from mrpo.run_reading import read_metrics
from tests.integration.test_train import SMALL, command, losses, train
from tests.locations import REPOSITORY

NUM_STEPS = 6
PATIENCE_S = 600.0
OVERRIDES = [
    *SMALL,
    f"num_steps={NUM_STEPS}",
    "learner.num_ranks=2",
    "checkpoint.every_steps=2",
    "eval.before=false",
    # A step takes a second or two; on a machine that is busy with other things a healthy rank must not count as stuck.
    "watchdog.learn_s=90",
    "watchdog.score_s=90",
    "learner.publish_timeout_s=120",
]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    ends_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, "the run has ended"
        assert time.monotonic() < ends_at, "nothing comes of it"
        time.sleep(0.1)


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Processes of the learner, the oldest first."""
    children = psutil.Process(process.pid).children(recursive=True)
    found = [child for child in children if "learner" in " ".join(child.cmdline()).lower()]
    return sorted(found, key=lambda child: child.create_time())


@pytest.mark.slow
def test_a_learner_that_hangs_and_one_that_dies(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "cache", tmp_path / "whole", *OVERRIDES)
    assert read_faults(whole) == []
    with (tmp_path / "shown").open("wb") as shown:
        process = subprocess.Popen(
            command(tmp_path / "cache", tmp_path / "runs", *OVERRIDES), cwd=REPOSITORY, stderr=shown, stdout=shown
        )
        try:

            def steps() -> int:
                rows = [row for folder in (tmp_path / "runs").glob("*/*/") for row in read_metrics(folder).rows]
                return len(rows)

            def restarted() -> bool:
                folder = next((tmp_path / "runs").glob("*/*/"))
                return any(fault.recovery_s is not None for fault in read_faults(folder))

            wait_until(lambda: steps() >= 3, process)
            os.kill(ranks_of(process)[-1].pid, signal.SIGSTOP)
            wait_until(restarted, process)
            wait_until(lambda: steps() >= 5, process)
            os.kill(ranks_of(process)[0].pid, signal.SIGKILL)
            assert process.wait(PATIENCE_S) == 0, (tmp_path / "shown").read_text()
        finally:
            process.kill()
    (folder,) = (tmp_path / "runs").glob("*/*/")
    assert_whole(folder)
    assert losses(folder) == losses(whole), "nobody can tell from the results"
    for step in range(1, NUM_STEPS + 1):
        name = f"rollouts/step_{step:05d}.parquet"
        assert [(row.key, row.text) for row in read_rows(folder / name)] == [
            (row.key, row.text) for row in read_rows(whole / name)
        ]
    stuck, lost = read_faults(folder)
    assert (stuck.kind, lost.kind) == (FaultKind.LEARNER_STUCK, FaultKind.LEARNER_LOST)
    assert "watchdog." in stuck.detail and "is stopped (state T)" in stuck.detail
    assert stuck.recovery_s is not None and lost.recovery_s is not None
    assert list((folder / "logs").glob("stacks-learner-*.txt"))
    report = (folder / "report.html").read_text()
    assert stuck.who in report and "is stopped (state T)" in report


def assert_whole(folder: Path) -> None:
    assert [row["step"] for row in read_metrics(folder).rows] == list(range(1, NUM_STEPS + 1))
    assert (folder / "eval" / "after.parquet").is_file()
