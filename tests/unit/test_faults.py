"""The record of faults: counted once, kept by line, mended by a second line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrpo.faults import FAULTS_FILE, Fault, FaultKind, FaultLog, read_faults
from tests.unit.full_disk import full_disk


class Diary:
    """Hears of faults."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []

    def fault_begun(self, fault: Fault) -> None:
        self.begun.append(fault.who)

    def fault_ended(self, fault: Fault) -> None:
        assert fault.recovery_s is not None
        self.ended.append(fault.who)


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


def test_recoveries_of_a_step_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now_s = FaultLog(None), [100.0]
    monkeypatch.setattr("mrpo.faults.time.time", lambda: now_s[0])
    faults = [log.begin(FaultKind.ENGINE_LOST, f"engine-{number}") for number in range(2)]
    for fault, seconds in zip(faults, (7.0, 5.0), strict=True):
        now_s[0] = 100.0 + seconds
        log.end(fault)
    assert log.take_metrics() == {"faults/engine_lost": 2.0, "faults/recovery_s": 12.0}


def test_a_listener_hears_of_all_that_its_process_noticed_until_its_block_ends(tmp_path: Path) -> None:
    FaultLog(tmp_path / FAULTS_FILE).begin(FaultKind.NODE_LOST, "of an earlier process")
    log, diary = FaultLog(tmp_path / FAULTS_FILE), Diary()
    early = log.begin(FaultKind.ENGINE_LOST, "engine-0")  # while the engines started
    open_ = log.begin(FaultKind.ENGINE_LOST, "engine-1")
    log.end(early)
    assert log.take_metrics()["faults/engine_lost"] == 2.0  # what steps have does not matter to listeners
    with log.told_to(diary):
        assert (diary.begun, diary.ended) == (["engine-0", "engine-1"], ["engine-0"])
        log.end(open_)
        log.end(open_)
        log.resume(Fault(kind=FaultKind.PREEMPTED, who="driver", detail="", at_s=0.0))
        log.begin(FaultKind.NONFINITE_STEP, "step 3")
    log.begin(FaultKind.ENGINE_LOST, "engine-2")
    assert diary.begun == ["engine-0", "engine-1", "driver", "step 3"]
    assert diary.ended == ["engine-0", "engine-1", "driver"]


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


def test_a_damaged_line_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / FAULTS_FILE
    path.write_text('{"kind": "rain"}\n{"kind": "engine{"kind": "node_lost"}\n[]\n')
    FaultLog(path).begin(FaultKind.NODE_LOST, "node-1")
    assert [fault.who for fault in FaultLog(path).left_open(FaultKind.NODE_LOST)] == ["node-1"]
    assert "faults.jsonl line 1 is passed over: 'rain' is not a valid FaultKind" in caplog.text


def test_a_fault_that_a_full_disk_cuts_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / FAULTS_FILE
    log = FaultLog(path)
    log.begin(FaultKind.ENGINE_LOST, "engine-0")
    with full_disk(path, room=40):
        failed = log.begin(FaultKind.CHECKPOINT_FAILED, "step_40", "No space left on device")
        assert not path.read_bytes().endswith(b"\n"), "a part of its line is there"
    log.begin(FaultKind.NODE_LOST, "node-1")
    assert [fault.who for fault in read_faults(tmp_path)] == ["engine-0", "node-1"]
    log.end(failed)
    assert [fault.who for fault in read_faults(tmp_path)] == ["engine-0", "node-1", "step_40"]


def test_what_is_learned_of_a_fault_later_is_on_record_before_it_ends(tmp_path: Path) -> None:
    log = FaultLog(tmp_path / FAULTS_FILE)
    fault = log.begin(FaultKind.ENGINE_STUCK, "engine-0", "no step")
    fault.detail += "; in recv"
    log.update(fault)
    [read] = read_faults(tmp_path)
    assert (read.detail, read.recovery_s) == ("no step; in recv", None)
    assert log.take_metrics() == {"faults/engine_stuck": 1.0}
