"""The table of metrics: whole, with a unit in every Prometheus name, each metric in it once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mrpo.faults import FaultKind, FaultLog
from mrpo.metrics import sync_metrics
from mrpo.run_reading import read_metrics
from mrpo.telemetry.rows import TABLE
from mrpo.telemetry.table import Kind, Row, Stage, Table, Unit
from mrpo.types import FailureReason
from tests.unit.synthetic_run import make_run

PURE_NUMBERS = {
    "reward/mean", "reward/answer", "reward/process", "reward/step_count", "advantage/abs",
    "policy/loss", "policy/grad_norm", "policy/lr",
}  # fmt: skip


def test_names_follow_prometheus_and_hold_their_unit() -> None:
    for row in TABLE.rows:
        assert re.fullmatch(r"mrpo(_[a-z0-9]+)+", row.prometheus), row.name
        assert row.description
        words = row.prometheus.split("_")
        if row.unit == Unit.NONE:
            assert row.name in PURE_NUMBERS, f"{row.name} has no unit"
        else:
            assert {row.unit, row.unit.removesuffix("s")} & set(words) or row.unit in row.prometheus, row.prometheus
    assert {row.name for row in TABLE.rows if row.unit == Unit.NONE} == PURE_NUMBERS


@pytest.mark.parametrize(
    ("name", "exported"),
    [
        ("rollout/tokens_per_s", "ray_mrpo_rollout_tokens_per_second"),
        ("time/step_s", "ray_mrpo_time_step_seconds"),
        ("judge/latency_max_s", "ray_mrpo_judge_latency_max_seconds"),
        ("judge/requests", "ray_mrpo_judge_requests_total"),
        ("judge/failures/{reason}", "ray_mrpo_judge_failures_total"),
        ("policy/kl", "ray_mrpo_policy_kl_nats"),
        ("judge/call_s", "ray_mrpo_judge_call_seconds_bucket"),
    ],
)
def test_names_as_scraped(name: str, exported: str) -> None:
    (row,) = [row for row in TABLE.rows if row.name == name]
    assert row.exported == exported


def test_a_family_gives_its_label() -> None:
    found = TABLE.find("steps/valid_share_at/3")
    assert found is not None
    row, labels = found
    assert row.name == "steps/valid_share_at/{position}"
    assert labels == {"position": "3"}
    exact = TABLE.find("faults/recovery_s")  # not a fault of that kind
    assert exact is not None
    assert exact[0].unit == Unit.SECONDS
    assert TABLE.find("rollout/unheard_of") is None


def test_counters_and_histograms_tell_their_kind() -> None:
    for row in TABLE.rows:
        assert bool(row.buckets) == (row.kind == Kind.HISTOGRAM), row.name
        assert list(row.buckets) == sorted(set(row.buckets))


def test_two_rows_of_one_name_are_refused() -> None:
    row = Row("policy/loss", Unit.NONE, Kind.GAUGE, Stage.LEARNER, "policy loss")
    with pytest.raises(AssertionError, match="two rows of one name"):
        Table((row, row))
    near = Row("policy_loss", Unit.NONE, Kind.GAUGE, Stage.LEARNER, "the same in Prometheus")
    with pytest.raises(AssertionError, match="two rows of one Prometheus name"):
        Table((row, near))


def test_the_table_holds_what_a_run_logs(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_steps=3, steps_done=3, evaluations=("before",))
    names = {name for row in read_metrics(run.path).rows for name in row} - {"step"}
    names |= set(json.loads((run.path / "eval" / "before.json").read_text()))
    names |= set(sync_metrics({"bytes": 1.0, "buckets": 1.0, "seconds": 1.0}))
    assert len(names) > 60
    faults = FaultLog(None)
    for kind in FaultKind:
        faults.end(faults.begin(kind, "engine-0"))
    names |= set(faults.take_metrics()) | {f"judge/failures/{reason}" for reason in FailureReason}
    assert [name for name in sorted(names) if TABLE.find(name) is None] == []
