"""How a run's folder is taken up again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mrpo.config import Config, plain
from mrpo.console import Console
from mrpo.faults import FAULTS_FILE, FaultKind, FaultLog, read_faults
from mrpo.run_folder import RunFolder
from mrpo.run_session import open_run, rewind_to_checkpoint


def test_what_the_process_before_left_open_is_over_but_for_nodes_that_are_missing(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "demo", plain(Config())) as run:
        faults = FaultLog(run.path / FAULTS_FILE)
        for kind in FaultKind:
            faults.begin(kind, "somebody")
    with RunFolder.open(run.path) as again:
        faults = FaultLog(run.path / FAULTS_FILE)
        assert rewind_to_checkpoint(again, replace(Config(), resume=str(run.path)), Console(1), faults) is None
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
