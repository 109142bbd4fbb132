"""`python -m mrpo.train` that shows what it waits for: SIGUSR2 writes the stacks of its threads and asyncio tasks."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import runpy
import signal
import sys
from types import FrameType


def show_stacks(number: int, frame: FrameType | None) -> None:
    """To stderr."""
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    for task in [item for item in gc.get_objects() if isinstance(item, asyncio.Task)]:
        if not task.done():
            task.print_stack(file=sys.stderr)
    sys.stderr.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, show_stacks)
    runpy.run_module("mrpo.train", run_name="__main__", alter_sys=True)
