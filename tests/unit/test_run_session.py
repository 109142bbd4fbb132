"""How a run's folder is taken up again."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo.config import Config, plain
from mrpo.console import Console
from mrpo.faults import FAULTS_FILE, FaultKind, FaultLog, read_faults
from mrpo.manifest import MANIFEST
from mrpo.run_folder import RunFolder
from mrpo.run_session import open_run, rewind_to_checkpoint


def test_what_the_process_before_left_open_is_over_but_for_nodes_that_are_missing(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "demo", plain(Config())) as run:
        faults = FaultLog(run.path / FAULTS_FILE)
        for kind in FaultKind:
            faults.begin(kind, "somebody")
    with RunFolder.open(run.path) as again:
        faults = FaultLog(run.path / FAULTS_FILE)
        config = replace(Config(), resume=str(run.path))
        assert asyncio.run(rewind_to_checkpoint(again, config, Console(1), faults)) is None
    found = read_faults(run.path)
    assert [fault.kind for fault in found] == list(FaultKind), "none is on record twice"
    assert [fault.kind for fault in found if fault.recovery_s is None] == [FaultKind.NODE_LOST]
    counted = {name for name in faults.take_metrics() if name != "faults/recovery_s"}
    assert counted == {"faults/preempted"}, "the others were counted when they were noticed"


def test_a_run_is_made_under_its_name_and_keeps_it(tmp_path: Path) -> None:
    config = replace(Config(), runs_dir=str(tmp_path), run_name="slurm-4711")
    with open_run(config) as run:
        assert run.path == tmp_path / "phantom" / "slurm-4711"
    with open_run(replace(config, resume=str(run.path))) as again:
        assert again.config["run_name"] == "slurm-4711"


def test_a_stop_is_heard_while_checksums_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder.create(tmp_path, "demo", plain(Config())) as run:
        with run.checkpoint(1) as folder:
            with (folder / "weights").open("wb") as file:
                file.truncate(2**40)  # of no disk space, and of many minutes of hashing
            noted = {"weights": {"bytes": 2**40, "sha256": "0" * 64}}
            (folder / MANIFEST).write_text(json.dumps({"format_version": 1, "files": noted}))
        config = replace(Config(), resume=str(run.path))

        async def stopped() -> None:
            work = asyncio.create_task(rewind_to_checkpoint(run, config, Console(1), FaultLog(None)))
            await asyncio.sleep(0.2)
            assert not work.done()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            assert work.cancelled()

        started = time.monotonic()
        asyncio.run(stopped())
        assert time.monotonic() - started < 60, "nor does the command wait for the threads that hash"
        assert folder.with_name("step_1").is_dir(), "what is not compared is not damaged"
    assert "checksums of step_1" in capsys.readouterr().err
