"""What a checkpoint costs training: seconds it stands still, and memory beyond its own, asynchronous or not.

A learner of one rank in a process of its own each, on the toy that `make train` trains and on one that is deeper.
Peaks are those of the resident set above what it held just before. Exits with 1 where the toy's training stands still
for longer than its bound.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("bench")
BOUND_S = 0.5  # of the toy
ROUNDS = 5
SIZES = {"toy": 3, "deep": 100}  # layers of the language model; three are what `make train` trains
POLL_S = 0.001
MIB = 2**20
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}  # freed blocks are given back


def report() -> bool:
    """Log a line a size and a way; False where the toy's bound is exceeded."""
    within = True
    for size in SIZES:
        for way in ("asynchronous", "synchronous"):
            found = _in_own_process(size, way)
            logger.info(
                "checkpoint, %s model, %s: %.0f MiB on disk; training stands still for %.3f s (largest %.3f), written "
                "after %.3f s; %.0f MiB of memory more at the peak",
                size, way, found["disk_mib"], found["blocked_s"], found["blocked_max_s"], found["written_s"],
                found["peak_mib"],
            )  # fmt: skip
            if size == "toy" and way == "asynchronous":
                within = found["blocked_max_s"] < BOUND_S
    return within


def _in_own_process(size: str, way: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.perf.checkpoint", size, way]
    environment = os.environ | MALLOC | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _measure(size: str, way: str, folder: Path) -> dict[str, float]:
    from mrpo.phantom import toy_models

    toy_models.NUM_LAYERS = SIZES[size]
    from learner.checkpoint import save, snapshot, write
    from learner.step import train_step
    from tests.integration.learner_world import build_world, completions, make, spec

    build_world(folder)
    rank = make(spec(folder, zero_stage=2))
    samples = completions(folder)
    train_step(rank, samples, progress=0.0)
    blocked, written, peaks = [], [], []
    for number in range(ROUNDS + 1):  # the first warms up
        target = folder / f"checkpoint-{number}"
        target.mkdir()
        with _peak_of_memory() as peak:
            started = time.perf_counter()
            if way == "asynchronous":
                contents = snapshot(rank)
                assert contents is not None
                blocked.append(time.perf_counter() - started)
                write(contents, target)
                del contents
            else:
                save(rank, target)
                blocked.append(time.perf_counter() - started)
            written.append(time.perf_counter() - started)
        peaks.append(peak[0])
    middle = ROUNDS // 2
    return {
        "disk_mib": sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / MIB,
        "blocked_s": sorted(blocked[1:])[middle],
        "blocked_max_s": max(blocked[1:]),
        "written_s": sorted(written[1:])[middle],
        "peak_mib": sorted(peaks[1:])[middle] / MIB,
    }


@contextmanager
def _peak_of_memory() -> Iterator[list[int]]:
    """Bytes of the resident set at its peak within the block, above what it was before."""
    before, peak, over = _resident(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            peak[0] = max(peak[0], _resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _resident() -> int:
    (kib,) = re.findall(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    return int(kib) * 1024


def main() -> int:
    """Without arguments the whole report; with a size and a way one measurement, as JSON."""
    if arguments := sys.argv[1:]:
        size, way = arguments
        with tempfile.TemporaryDirectory() as folder:
            sys.stdout.write(json.dumps(_measure(size, way, Path(folder))) + "\n")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    return 0 if report() else 1


if __name__ == "__main__":
    sys.exit(main())
