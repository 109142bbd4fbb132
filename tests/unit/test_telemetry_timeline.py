"""The timeline a run leaves: whole where it can be, one for each process, and nothing that ends a run."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mrpo.telemetry.timeline import TIMELINE, keep_timeline

STAGE = {"cat": "learn", "name": "learn"}
TASK = {"cat": "task:execute", "name": "task:execute"}  # of an actor


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder."""
    (tmp_path / "logs").mkdir()
    return tmp_path


@pytest.mark.asyncio
async def test_it_waits_for_all_stages(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    looks = iter([[TASK], [TASK, STAGE], [TASK, STAGE, STAGE]])
    await keep_timeline(run, {"learn": 2}, lambda: next(looks), tries=5, pause_s=0.0)
    assert json.loads((run / TIMELINE).read_text()) == [TASK, STAGE, STAGE]
    assert not caplog.records


@pytest.mark.asyncio
async def test_what_there_is_is_kept_and_said_to_be_a_part(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    looks: list[list[dict[str, Any]]] = [[STAGE]] * 3
    with caplog.at_level(logging.WARNING):
        await keep_timeline(run, {"learn": 2, "score": 0}, looks.pop, tries=3, pause_s=0.0)
    assert looks == []
    assert json.loads((run / TIMELINE).read_text()) == [STAGE]
    assert "has not all stages" in caplog.text


@pytest.mark.asyncio
async def test_each_process_of_a_run_has_its_own(run: Path) -> None:
    for number in range(1, 4):
        await keep_timeline(run, {}, partial(list, [STAGE] * number), tries=1, pause_s=0.0)
    lengths = {path.name: len(json.loads(path.read_text())) for path in (run / "logs").iterdir()}
    assert lengths == {"timeline.json": 1, "timeline-2.json": 2, "timeline-3.json": 3}


@pytest.mark.asyncio
async def test_a_disk_that_takes_none_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await keep_timeline(tmp_path / "gone", {"learn": 1}, lambda: [STAGE], tries=1, pause_s=0.0)
    assert "cannot be written" in caplog.text
