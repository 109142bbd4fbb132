"""A small training run in processes of its own, to be killed, and what must be the same when it has gone on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from mrpo.run_reading import list_checkpoints, read_metrics
from tests.locations import REPOSITORY

NUM_STEPS = 5
TIMEOUT_S = 420.0
GONE_S = 20.0  # from the death of the driver until nothing of the run is left; on an idle machine 2 s
POLL_S = 0.002
SMALL = (
    "data.num_train=16",
    "data.num_test=4",
    "model.warm_start.num_scans=64",
    "model.warm_start.true_steps=16",
    "model.warm_start.faulty_steps=2",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_new_tokens=48",
    "checkpoint.every_steps=1",
    "checkpoint.keep_last=2",
    "eval.every_steps=2",
    "eval.num_periodic=4",
    "cluster.min_free_memory_gib=2",
    f"num_steps={NUM_STEPS}",
    "resume=auto",
)
CLOCKS = ("_s", "_started_s", "_sent_s", "_ended_s")  # columns that tell a time
# Metrics that tell of time, of how work met in queues, of what befell the run, or of what a process spent since the
# step before: with an evaluation in between, which is not done again.
MEASURED = (
    *("time/", "checkpoint/", "faults/", "judge/queue", "judge/latency", "judge/overlap", "judge/tokens"),
    *("sync/publish", "gpu/"),
)
QUEUES = ("_max", "_per_s")


class Run:
    """The command, started again and again as a scheduler does."""

    def __init__(self, cache: Path, runs: Path, *overrides: str) -> None:
        """Nothing starts yet.

        Args:
            cache: for `cache_dir`.
            runs: for `runs_dir`, of this run alone.
            overrides: on top of `SMALL`.
        """
        places = [f"cache_dir={cache}", f"runs_dir={runs}"]
        self._command = [sys.executable, "-m", "mrpo.train", *places, *SMALL, *overrides]
        self._runs = runs
        self._log = runs / "shown.txt"
        self.process: subprocess.Popen[bytes]

    @property
    def folder(self) -> Path:
        """The run folder."""
        (folder,) = self._runs.glob("*/*/")
        return folder

    @property
    def shown(self) -> str:
        """All that was on the console."""
        return self._log.read_text()

    @property
    def num_steps(self) -> int:
        """Steps on record."""
        files = list(self._runs.glob("*/*/metrics.jsonl"))
        return len(files[0].read_text().splitlines()) if files else 0

    def start(self) -> None:
        """Begin or go on."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
            )

    def finish(self) -> Path:
        """Go on to the end; returns the run folder."""
        self.start()
        assert self.process.wait(TIMEOUT_S) == 0, self.shown
        return self.folder

    def wait_until(self, happens: Callable[[], bool]) -> None:
        """Look again and again, often enough to meet what lasts for a hundredth of a second."""
        ends_at = time.monotonic() + TIMEOUT_S
        while not happens():
            assert self.process.poll() is None, self.shown
            assert time.monotonic() < ends_at, f"nothing within {TIMEOUT_S} s: {self.shown}"
            time.sleep(POLL_S)

    def stop_when(self, happens: Callable[[], object]) -> list[psutil.Process]:
        """Every process of the run, stopped while it happens: what is then killed dies in the middle of it."""
        while True:
            self.wait_until(lambda: bool(happens()))
            family = self.stopped()
            if happens():
                return family
            for process in family:  # it was over before all stood still
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def stopped(self) -> list[psutil.Process]:
        """Every process of the run, stopped; those too that others began while they were stopped."""
        family: list[psutil.Process] = []
        while new := [process for process in self.family() if process not in family]:
            for process in new:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            family += new
        return family

    def family(self) -> list[psutil.Process]:
        """Every process of the run, the command first."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def unfinished_checkpoint(self, after: int) -> Path | None:
        """The folder of a checkpoint that is being written, of a step behind `after`."""
        for folder in self._runs.glob("*/*/checkpoints/.step_*.tmp/learner"):
            if int(folder.parent.name.split(".")[1].removeprefix("step_")) > after:
                return folder.parent
        return None


def kill_all(family: Sequence[psutil.Process]) -> None:
    """`kill -9` of everything at once."""
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def wait_until_gone(family: Sequence[psutil.Process]) -> list[str]:
    """What is left after `GONE_S`, by name."""
    psutil.wait_procs(family, timeout=GONE_S)
    return [" ".join(process.cmdline())[:100] for process in family if is_running(process)]


def is_running(process: psutil.Process) -> bool:
    """Whether it is there and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def weights_in_memory(family: Sequence[psutil.Process]) -> list[Path]:
    """Buffers of weights that these processes made in /dev/shm."""
    pids = {process.pid for process in family}
    return [path for path in Path("/dev/shm").glob("mrpo-weights-*") if int(path.name.split("-")[2]) in pids]


def preempt(run: Run) -> None:
    """SIGTERM, twice, as it arrives through `make`."""
    for _ in range(2):
        os.kill(run.process.pid, signal.SIGTERM)


def assert_same(found: Path, expected: Path) -> None:
    """Two runs came to the same, to the bit: completions, rulings, rewards, losses, evaluations, weights."""
    assert metrics_of(found) == metrics_of(expected)
    for part in ("rollouts", "eval"):
        names = sorted(path.name for path in (expected / part).glob("*.parquet"))
        assert names == sorted(path.name for path in (found / part).glob("*.parquet"))
        for name in names:
            assert rows_of(found / part / name) == rows_of(expected / part / name), name
    ours, theirs = list_checkpoints(found)[-1], list_checkpoints(expected)[-1]
    assert ours.step == theirs.step
    for file in theirs.path.rglob("*"):
        if file.is_file():
            assert (ours.path / file.relative_to(theirs.path)).read_bytes() == file.read_bytes(), file


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """What must repeat of every step's metrics."""
    rows = read_metrics(run).rows
    return [{k: v for k, v in row.items() if not k.startswith(MEASURED) and not k.endswith(QUEUES)} for row in rows]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What must repeat of every completion."""
    rows = pq.read_table(path).to_pylist()
    return [{name: value for name, value in row.items() if not name.endswith(CLOCKS)} for row in rows]
