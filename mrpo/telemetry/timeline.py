"""The timeline of a run's stages and tasks, kept in its folder for ui.perfetto.dev or chrome://tracing. Pure."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrpo.atomic import write_text

logger = logging.getLogger(__name__)

TIMELINE = "logs/timeline.json"  # in the run folder
FLUSH_S = 0.5  # before each look: Ray's processes hand in their spans every second, a busy machine's later
TRIES = 20
TRIES_EARLY = 4  # where something ended the run: it may be killed any moment, and its state is not yet on record


async def keep_timeline(
    run: Path,
    stages: Mapping[str, int],
    read: Callable[[], Sequence[dict[str, Any]]],
    *,
    tries: int,
    pause_s: float = FLUSH_S,
) -> None:
    """Write what `ray timeline` writes, once it has all stages of this process; that of an earlier process stays.

    Args:
        run: its folder, with `logs/` in it.
        stages: how many of each name this process ended.
        read: what Ray has by now.
        tries: looks, after which it is written as it is.
        pause_s: before each look.
    """
    path = _free(run / TIMELINE)
    events: Sequence[dict[str, Any]] = ()
    for _ in range(tries):
        await asyncio.sleep(pause_s)
        events = read()
        found = Counter(event["name"] for event in events if event.get("cat") == event["name"])
        if all(found[name] >= number for name, number in stages.items()):
            break
    else:
        logger.warning("%s has not all stages: Ray was slow to hand them in", path)
    try:
        write_text(path, json.dumps(events))
    except OSError as error:  # a full disk, say: nothing of the run depends on it
        logger.error("%s cannot be written: %s", path, error)


def _free(path: Path) -> Path:
    """The first of `timeline.json`, `timeline-2.json`, … that is not there: each process of a run has its own."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free
