"""That all that shows a run's numbers shows the same digits: one assertion a place, against `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

from mrpo.run_reading import read_metrics
from mrpo.telemetry.grafana import PANELS, expressions, row_named
from mrpo.telemetry.rows import TABLE
from mrpo.telemetry.table import Kind, Stage, Unit
from tests.integration.metrics_readers import Endpoint, wandb_history
from tests.tensorboard_files import read_scalars

GPU_ALONE = {"policy/gpu_memory_bytes"}  # absent where there is none, rather than 0
SHOWN = (("reward", "reward/mean"), ("accuracy", "accuracy"), ("early failures", "cascade/early_share"))

Rows = list[dict[str, float]]


def training_rows(run: Path) -> Rows:
    """The lines of `metrics.jsonl`."""
    return [{name: value for name, value in row.items() if value is not None} for row in read_metrics(run).rows]


def evaluation_rows(run: Path) -> dict[str, dict[str, float]]:
    """The numbers of evaluations by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((run / "eval").glob("*.json"))}


def assert_the_table_is_whole(run: Path) -> None:
    """Every name that the run logged has a row."""
    names = {name for row in (*training_rows(run), *evaluation_rows(run).values()) for name in row} - {"step"}
    assert [name for name in sorted(names) if TABLE.find(name) is None] == []
    assert not names & GPU_ALONE


def assert_wandb_agrees(run: Path) -> None:
    """The offline file has every line and every evaluation, to the digit."""
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    logged = [{key: value for key, value in row.items() if not key.startswith("_")} for row in wandb_history(path)]
    steps = [row for row in logged if "time/step_s" in row]
    assert steps == training_rows(run)
    ended = {row["eval/questions"]: row for row in logged if "eval/questions" in row}
    assert ended
    for numbers in evaluation_rows(run).values():
        assert numbers in [{key: value for key, value in row.items() if key != "step"} for row in logged]


def assert_tensorboard_agrees(run: Path) -> None:
    """The event files have every line, to the digit."""
    scalars = read_scalars(run)
    expected = {
        (name, int(row["step"])): value for row in training_rows(run) for name, value in row.items() if name != "step"
    }
    assert {key: value for key, value in scalars.items() if not key[0].startswith("eval/")} == expected
    last = max(step for _, step in expected)
    after = evaluation_rows(run)["after"]
    assert {name: value for (name, step), value in scalars.items() if name in after and step == last} == after


def assert_the_console_agrees(run: Path, shown: str) -> None:
    """The lines of steps show the numbers, rounded."""
    lines = {int(match[1]): match[0] for match in re.finditer(r"^step (\d+)/\d+ .*$", shown, re.MULTILINE)}
    rows = {int(row["step"]): row for row in training_rows(run)}
    assert {1, max(rows)} <= lines.keys()
    for step, line in lines.items():
        row, parts = rows[step], line.split(" | ")
        for label, name in SHOWN:
            assert (name not in row) or f"{label} {row[name]:.3f}" in parts, line
        assert f"{row['rollout/tokens_per_s']:,.0f} tokens/s" in parts, line
        assert f"{row['time/step_s']:.1f} s a step" in parts, line


def assert_prometheus_agrees(run: Path, endpoint: Endpoint) -> None:
    """Gauges showed the numbers of steps, the last one's in the end; counters came to their sums."""
    rows, evaluations = training_rows(run), evaluation_rows(run)
    own = {("experiment", run.parent.name), ("run", run.name)}
    series = endpoint.series()
    assert all(own <= labels for _, labels in series)
    for name in sorted({name for row in rows for name in row} - {"step"}):
        found = TABLE.find(name)
        assert found is not None
        row, labels = found
        values = series.get((row.exported, frozenset(own | set(labels.items()))), [])
        logged = [line[name] for line in rows if name in line]
        if row.kind == Kind.GAUGE:
            assert set(values) <= set(logged), name  # of a short step alone, none may have been seen
            assert name not in rows[-1] or values[-1] == rows[-1][name], name
        else:
            exact = all(value == int(value) for value in logged)
            assert values[-1] == sum(logged) if exact else math.isclose(values[-1], sum(logged), rel_tol=1e-12), name
    for name in evaluations["before"]:
        found = TABLE.find(name)
        assert found is not None
        values = series[found[0].exported, frozenset(own)]
        assert set(values) <= {numbers[name] for numbers in evaluations.values() if name in numbers}, name
    assert series["ray_mrpo_run_step", frozenset(own)][-1] == rows[-1]["step"]


def assert_every_panel_asks_for_what_was_exported(endpoint: Endpoint, stages: Iterable[Stage]) -> None:
    """Metric names in the queries of these rows of the dashboard, against those of the run's endpoint."""
    exported = {name for name, _ in endpoint.series()}
    for stage in stages:
        for panel in PANELS[stage]:
            for name in panel.names:
                asked = {word for text, _ in expressions(row_named(name)) for word in re.findall(r"\bray_\w+", text)}
                assert asked <= exported or name in GPU_ALONE, f"{panel.title}: {asked - exported}"
    assert {row.name for row in TABLE.rows if row.unit == Unit.BYTES and row.kind == Kind.GAUGE} == GPU_ALONE
