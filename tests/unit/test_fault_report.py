"""Faults in the report: each is listed with who, how long and why, and counted in a line."""

from __future__ import annotations

import json
from pathlib import Path

from mrpo.faults import FAULTS_FILE, Fault, FaultKind, FaultLog
from mrpo.report.faults import NUM_SHOWN, WHAT, fault_rows, faults_text
from mrpo.report.render import write_report
from tests.unit.synthetic_run import make_run


def small_run(folder: Path) -> Path:
    with make_run(folder, num_steps=2, steps_done=2, num_questions=4, evaluations=("before",)) as run:
        return run.path


def fault(kind: FaultKind, recovery_s: float | None, who: str = "learner-0") -> Fault:
    return Fault(kind=kind, who=who, detail="", at_s=1_760_000_000.0, recovery_s=recovery_s)


def test_every_kind_has_its_words() -> None:
    assert set(WHAT) == set(FaultKind)


def test_faults_are_counted_in_a_line() -> None:
    assert faults_text([]) == ""
    lost = fault(FaultKind.LEARNER_LOST, 31.0)
    assert faults_text([lost]) == "1 learner lost; longest recovery 31 s"
    others = [fault(FaultKind.LEARNER_LOST, 12.0), fault(FaultKind.NODE_LOST, None)]
    assert faults_text([*others, lost]) == "2 learners lost, 1 node lost; longest recovery 31 s; 1 not mended"


def test_the_newest_are_shown() -> None:
    rows = fault_rows([fault(FaultKind.ENGINE_LOST, 1.0, f"engine-{number}") for number in range(NUM_SHOWN + 1)])
    assert [rows[0].who, rows[-1].who] == ["engine-1", f"engine-{NUM_SHOWN}"]


def test_the_report_lists_them_and_what_they_say_is_data(tmp_path: Path) -> None:
    folder = small_run(tmp_path)
    log = FaultLog(folder / FAULTS_FILE)
    detail = "learner-1 did not step within watchdog.learn_s=20 s: in <module> (x.py:1)"
    with log.during(FaultKind.LEARNER_STUCK, "learner-1", detail):
        pass
    log.begin(FaultKind.NODE_LOST, "10.0.0.2 (bbbbbbbb)")
    page = write_report(folder).read_text()
    assert "<h2>Faults</h2>" in page
    assert "in &lt;module&gt; (x.py:1)" in page and "in <module>" not in page
    assert "1 learner stuck, 1 node lost; longest recovery" in page
    assert 'title="learner_stuck"' in page, "as metrics name it"
    assert "not mended" in page and "10.0.0.2 (bbbbbbbb)" in page


def test_a_run_without_faults_says_nothing_of_them(tmp_path: Path) -> None:
    assert "<h2>Faults</h2>" not in write_report(small_run(tmp_path)).read_text()


def test_a_fault_that_is_mended_later_is_one_line_of_the_report(tmp_path: Path) -> None:
    folder = small_run(tmp_path)
    log = FaultLog(folder / FAULTS_FILE)
    log.end(log.begin(FaultKind.ENGINE_LOST, "engine-0"))
    assert len((folder / FAULTS_FILE).read_text().splitlines()) == 2
    assert json.loads((folder / FAULTS_FILE).read_text().splitlines()[0])["recovery_s"] is None
    assert write_report(folder).read_text().count("engine lost") == 2, "the line that counts, and its own"
