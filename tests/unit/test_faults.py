"""The record of faults: counted once, kept by line, mended by a second line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrpo.errors import DataError
from mrpo.faults import FAULTS_FILE, FaultKind, FaultLog, read_faults


def test_a_fault_is_counted_once_and_its_recovery_timed(tmp_path: Path) -> None:
    log = FaultLog(tmp_path / FAULTS_FILE)
    fault = log.begin(FaultKind.ENGINE_LOST, "engine-0", "killed")
    assert log.take_metrics() == {"faults/engine_lost": 1.0}
    assert read_faults(tmp_path)[0].recovery_s is None
    log.end(fault)
    log.end(fault)
    metrics = log.take_metrics()
    assert metrics.keys() == {"faults/recovery_s"} and metrics["faults/recovery_s"] >= 0
    assert log.take_metrics() == {}
    [read] = read_faults(tmp_path)
    assert read == fault and read.kind is FaultKind.ENGINE_LOST


def test_a_block_that_fails_leaves_its_fault_open(tmp_path: Path) -> None:
    log = FaultLog(tmp_path / FAULTS_FILE)
    with pytest.raises(OSError), log.during(FaultKind.LEARNER_LOST, "learner-1"):
        raise OSError
    with log.during(FaultKind.LEARNER_LOST, "learner-0"):
        pass
    assert [(fault.who, fault.recovery_s is None) for fault in read_faults(tmp_path)] == [
        ("learner-1", True),
        ("learner-0", False),
    ]


def test_a_resumed_run_goes_on_with_the_record_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / FAULTS_FILE
    FaultLog(path).begin(FaultKind.JUDGE_OUTAGE, "judge")
    with path.open("a") as file:
        file.write('{"kind": "engine')
    FaultLog(path).begin(FaultKind.NODE_LOST, "node-1")
    assert [fault.kind for fault in read_faults(tmp_path)] == [FaultKind.JUDGE_OUTAGE, FaultKind.NODE_LOST]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / FAULTS_FILE).write_text('{"kind": "rain"}\n')
    with pytest.raises(DataError, match=r"faults.jsonl line 1: 'rain' is not a valid FaultKind"):
        read_faults(tmp_path)
