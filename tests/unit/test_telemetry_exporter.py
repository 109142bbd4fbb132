"""What the exporter hands to Ray, which keeps a diary here; tests/integration/test_train.py scrapes a real one."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import pytest

from mrpo.faults import FaultKind, FaultLog
from mrpo.telemetry import exporter
from mrpo.telemetry.exporter import RayExporter
from mrpo.telemetry.rows import TABLE
from mrpo.telemetry.table import Kind, Reading, Row

OWN = {"experiment": "demo", "run": "20260101"}


class Diary:
    """One metric of Ray's."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.set_to: list[tuple[float, dict[str, str]]] = []
        self.counts: dict[tuple[tuple[str, str], ...], float] = defaultdict(float)
        self.observed: list[float] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert self.row.kind == Kind.GAUGE
        self.set_to.append((value, tags))

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert self.row.kind == Kind.COUNTER
        assert value > 0  # as Ray demands
        self._record(value, tags)

    def _record(self, value: float, tags: dict[str, str]) -> None:
        self.counts[tuple(sorted(tags.items()))] += value

    def observe(self, value: float, tags: dict[str, str]) -> None:
        assert self.row.kind == Kind.HISTOGRAM
        assert tags == OWN
        self.observed.append(value)


@pytest.fixture
def diaries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Diary]:
    """By the name of the row."""
    made: dict[str, Diary] = {}

    def make(row: Row, own: tuple[str, ...]) -> Any:
        assert own == tuple(OWN)
        made[row.name] = Diary(row)
        return made[row.name]

    monkeypatch.setattr(exporter, "_make", make)
    return made


def make_exporter(step: int = 0) -> RayExporter:
    return RayExporter(experiment=OWN["experiment"], run=OWN["run"], num_steps=10, step=step)


def key(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({**OWN, **labels}.items()))


def test_counters_begin_at_zero_for_all_that_may_happen(diaries: dict[str, Diary]) -> None:
    make_exporter()
    assert {row.name for row in TABLE.rows} == diaries.keys()
    assert diaries["faults/{kind}"].counts == {key(kind=kind.value): 0.0 for kind in FaultKind}
    assert diaries["rollout/tokens"].counts == {key(): 0.0}
    assert diaries["run/step"].set_to == [(0.0, OWN)]
    assert diaries["run/planned"].set_to == [(10.0, OWN)]


def test_numbers_go_where_their_kind_says(diaries: dict[str, Diary]) -> None:
    watcher = make_exporter()
    watcher.step(
        3,
        {"policy/loss": 0.1 + 0.2, "rollout/tokens": 7.0, "steps/valid_share_at/2": 0.5, "judge/failures/timeout": 2.0},
    )
    assert diaries["policy/loss"].set_to == [(0.1 + 0.2, OWN)]
    assert diaries["steps/valid_share_at/{position}"].set_to == [(0.5, {**OWN, "position": "2"})]
    assert diaries["rollout/tokens"].counts == {key(): 7.0}
    assert diaries["judge/failures/{reason}"].counts[key(reason="timeout")] == 2.0
    assert diaries["run/step"].set_to[-1] == (3.0, OWN)


def test_gauges_are_set_again_until_a_step_has_them_no_more(diaries: dict[str, Diary]) -> None:
    watcher = make_exporter()
    watcher.evaluation("before", 0, {"eval/accuracy": 0.25})
    watcher.step(1, {"judge/latency_s": 0.5, "policy/loss": 1.0})
    watcher.refresh()
    assert diaries["judge/latency_s"].set_to == [(0.5, OWN)] * 2
    watcher.step(2, {"policy/loss": 2.0})  # nothing was judged
    watcher.refresh()
    assert len(diaries["judge/latency_s"].set_to) == 2
    assert [value for value, _ in diaries["policy/loss"].set_to] == [1.0, 1.0, 2.0, 2.0]
    assert len(diaries["eval/accuracy"].set_to) == 3  # shown until the next evaluation


def test_a_step_done_again_counts_what_it_took_and_goes_back_in_progress(diaries: dict[str, Diary]) -> None:
    watcher = make_exporter()
    for step in (1, 2, 3, 2):
        watcher.step(step, {"rollout/tokens": 100.0})
    assert diaries["rollout/tokens"].counts == {key(): 400.0}
    assert [value for value, _ in diaries["run/step"].set_to] == [0.0, 1.0, 2.0, 3.0, 2.0]


def test_progress_is_shown_from_where_a_run_goes_on(diaries: dict[str, Diary]) -> None:
    watcher = make_exporter(step=4)
    watcher.step(5, {})
    watcher.progress(2)  # rewound
    watcher.refresh()
    assert [value for value, _ in diaries["run/step"].set_to] == [4.0, 5.0, 2.0, 2.0]


def test_a_fault_is_counted_when_it_happens_and_by_no_step(diaries: dict[str, Diary]) -> None:
    watcher, log = make_exporter(), FaultLog(None)
    kinds, recoveries = diaries["faults/{kind}"].counts, diaries["faults/recovery_s"].counts
    lost = key(kind="engine_lost")
    early = log.begin(FaultKind.ENGINE_LOST, "engine-0")
    with log.told_to(watcher):
        assert kinds[lost] == 1.0
        log.end(early)
        assert early.recovery_s is not None
        assert recoveries == {key(): early.recovery_s}
        log.begin(FaultKind.NONFINITE_STEP, "step 2")
        watcher.step(2, log.take_metrics())
    assert (kinds[lost], kinds[key(kind="nonfinite_step")], sum(kinds.values())) == (1.0, 1.0, 2.0)
    assert recoveries == {key(): early.recovery_s}


def test_a_clock_that_was_set_back_takes_nothing_off(diaries: dict[str, Diary]) -> None:
    log = FaultLog(None)
    fault = log.begin(FaultKind.ENGINE_LOST, "engine-0")
    fault.at_s += 3600.0
    with log.told_to(make_exporter()):
        log.end(fault)
    assert diaries["faults/recovery_s"].counts == {key(): 0.0}


def test_what_cannot_be_counted_is_left_out(diaries: dict[str, Diary]) -> None:
    watcher = make_exporter()
    watcher.step(1, {"rollout/tokens": 0.0, "judge/cost": float("nan"), "policy/loss": float("nan")})
    assert diaries["rollout/tokens"].counts == diaries["judge/cost"].counts == {key(): 0.0}
    ((value, _),) = diaries["policy/loss"].set_to
    assert value != value  # a gauge shows that it is not a number


def test_an_unknown_metric_is_named_once(diaries: dict[str, Diary], caplog: pytest.LogCaptureFixture) -> None:
    watcher = make_exporter()
    with caplog.at_level(logging.WARNING):
        watcher.step(1, {"policy/unheard_of": 1.0})
        watcher.step(2, {"policy/unheard_of": 1.0})
    assert len(caplog.records) == 1
    assert "policy/unheard_of" in caplog.text


def test_a_group_replaces_what_it_showed_and_events_reach_histograms(diaries: dict[str, Diary]) -> None:
    watcher = make_exporter()
    for engine in ("engine-0", "engine-1"):
        watcher.show("queues", [Reading("rollout/running", 4.0, (("engine", engine),))])
    watcher.refresh()
    assert [tags["engine"] for _, tags in diaries["rollout/running"].set_to] == ["engine-0", "engine-1", "engine-1"]
    watcher.observe({"judge/call_s": [0.5, 1.5], "rollout/request_s": []})
    assert diaries["judge/call_s"].observed == [0.5, 1.5]
