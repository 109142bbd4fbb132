"""The Grafana dashboard of a run, made from the table of metrics: a row for each stage, a panel for each thing to see.

`python -m mrpo.telemetry` writes it to docker/grafana/dashboards/mrpo.json. Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mrpo.telemetry.rows import TABLE
from mrpo.telemetry.table import Kind, Row, Stage, Unit

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RUNS = '{experiment=~"$experiment", run=~"$run"}'
# Grafana's own window: the distance of two points of the graph and one scrape more, at least four scrapes (of the data
# source's "scrape interval", 15 s where it has none). However far one zooms out, every event is in a window; and a
# gauge is held while a scrape falls between two passes of Ray, whose endpoint shows it only once after it was set.
WINDOW = "$__rate_interval"
QUANTILES_OVER = "10m"  # as long as there are calls in it; a step may last for minutes
COLUMNS, PANELS_A_ROW, HEIGHT = 24, 4, 7
UNITS = {
    Unit.SECONDS: "s",
    Unit.BYTES: "bytes",
    Unit.SHARE: "percentunit",
    Unit.TOKENS_PER_SECOND: "tokens/s",
}
RATES = {Unit.BYTES: "Bps"}


@dataclass(frozen=True, slots=True)
class Panel:
    """What is drawn together: one or several rows of the table, of one unit."""

    title: str
    names: tuple[str, ...]
    stacked: bool = False
    rare: bool = False  # counters of single events: how many in each window, not how many a minute


PANELS: dict[Stage, tuple[Panel, ...]] = {
    Stage.RUN: (
        Panel("Steps done and planned", ("run/step", "run/planned")),
        Panel("State", ("run/state",)),
    ),
    Stage.ROLLOUT: (
        Panel("Sampled tokens a second", ("rollout/tokens_per_s",)),
        Panel("Engines by state", ("rollout/engines",), stacked=True),
        Panel("Requests of each engine: running", ("rollout/running",), stacked=True),
        Panel("Requests of each engine: waiting", ("rollout/waiting",), stacked=True),
        Panel("Seconds a completion, p50 and p95", ("rollout/request_s",)),
        Panel("Tokens a completion", ("completion/tokens", "completion/tokens_max")),
        Panel("Completions: cut, answered, without steps",
              ("completion/truncated_share", "completion/answered_share", "steps/none_share")),
        Panel("Staleness", ("rollout/staleness", "rollout/staleness_max")),
        Panel("Sampled tokens, by the minute", ("rollout/tokens",)),
        Panel("Completions, by the minute", ("rollout/completions", "completion/truncated")),
        Panel("Repetition and coverage", ("completion/repetition", "steps/repeated_share", "steps/token_coverage")),
        Panel("Reasoning steps a completion", ("steps/count",)),
    ),
    Stage.JUDGE: (
        Panel("Calls: waiting and in flight", ("judge/waiting", "judge/in_flight"), stacked=True),
        Panel("Seconds a call, p50 and p95", ("judge/call_s",)),
        Panel("Latency and queue", ("judge/latency_s", "judge/latency_max_s", "judge/queue_s")),
        Panel("Failures by reason", ("judge/failures/{reason}",), stacked=True, rare=True),
        Panel("Failure and overlap share", ("judge/failure_share", "judge/overlap_share")),
        Panel("Requests and calls, by the minute", ("judge/requests", "judge/asked")),
        Panel("Cost, by the minute", ("judge/cost",)),
        Panel("Tokens, by the minute", ("judge/tokens",)),
        Panel("Cache, by the minute", ("judge/cache_hits", "judge/cache_misses")),
        Panel("Outage, seconds", ("judge/outage_s",), rare=True),
    ),
    Stage.REWARD: (
        Panel("Rewards", ("reward/mean", "reward/answer", "reward/process", "reward/step_count")),
        Panel("Accuracy", ("accuracy",)),
        Panel("Failing and early-failing completions",
              ("cascade/failing_share", "cascade/early_share", "cascade/early_share_failing")),
        Panel("Valid steps by position", ("steps/valid_share_at/{position}",)),
        Panel("Valid steps", ("steps/valid_share",)),
        Panel("Groups", ("groups/count", "groups/dropped", "groups/constant", "groups/answer_only")),
        Panel("Size of token advantages", ("advantage/abs",)),
    ),
    Stage.LEARNER: (
        Panel("Loss", ("policy/loss",)),
        Panel("KL and entropy, nats a token", ("policy/kl", "policy/entropy")),
        Panel("Clip share", ("policy/clip_share",)),
        Panel("Gradient norm", ("policy/grad_norm",)),
        Panel("Learning rate", ("policy/lr",)),
        Panel("Probability ratio", ("policy/ratio_mean", "policy/ratio_max")),
        Panel("GPU memory, peak of a rank", ("policy/gpu_memory_bytes",)),
        Panel("Tokens with gradient, by the minute", ("policy/tokens",)),
        Panel("Updates skipped, completions left out",
              ("policy/skipped_update", "policy/dropped_vision_token"), rare=True),
    ),
    Stage.SYNC: (
        Panel("Seconds", ("time/sync_s", "sync/publish_s")),
        Panel("Bytes a second", ("sync/bytes",)),
        Panel("Buckets, by the minute", ("sync/buckets",)),
    ),
    Stage.FAULTS: (
        Panel("Faults by kind", ("faults/{kind}",), stacked=True, rare=True),
        Panel("Recoveries that ended, seconds", ("faults/recovery_s",), rare=True),
    ),
    Stage.CHECKPOINT: (
        Panel("Seconds: training waited, and writing beside it", ("checkpoint/blocked_s", "checkpoint/write_s")),
    ),
    Stage.TIME: (
        Panel("A step by stage", ("time/rollout_s", "time/judge_s", "time/learn_s", "time/sync_s"), stacked=True),
        Panel("The whole step", ("time/step_s",)),
        Panel("Newest stage of each name", ("time/stage_s",)),
    ),
    Stage.EVALUATION: (
        Panel("Accuracy, with its interval", ("eval/accuracy", "eval/accuracy_low", "eval/accuracy_high")),
        Panel("Early failures, with their interval",
              ("eval/early_share", "eval/early_share_low", "eval/early_share_high")),
    ),
    Stage.SUPERVISED: (
        Panel("Loss of demonstrations, and of held-out questions, nats a token", ("sft/loss", "heldout/loss")),
        Panel("Epochs done", ("sft/epoch",)),
    ),
}  # fmt: skip


def dashboard(uid: str) -> dict[str, Any]:
    """The dashboard as Grafana reads it; the order of the rows is that of `PANELS`."""
    panels: list[dict[str, Any]] = []
    top = 0
    for stage, shown in PANELS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": stage.value,
                "collapsed": False,
                "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": top},
                "panels": [],
            }
        )
        top += 1
        for number, panel in enumerate(shown):
            across, down = number % PANELS_A_ROW, number // PANELS_A_ROW
            width = COLUMNS // PANELS_A_ROW
            place = {"h": HEIGHT, "w": width, "x": across * width, "y": top + down * HEIGHT}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
        top += -(-len(shown) // PANELS_A_ROW) * HEIGHT
    return {
        "title": "MRPO",
        "uid": uid,
        "tags": ["mrpo", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def text(uid: str = "mrpo") -> str:
    """The file; a Grafana refuses a second dashboard of one `uid`."""
    return json.dumps(dashboard(uid), indent=2, ensure_ascii=False) + "\n"


def expressions(row: Row, *, rare: bool = False) -> list[tuple[str, str]]:
    """PromQL and legend of a metric. A resumed run goes on in a process of its own, so that series are joined."""
    by = ", ".join(("experiment", "run", *row.label_names))
    legend = " ".join(("{{run}}", *(f"{{{{{name}}}}}" for name in row.label_names)))
    if row.kind == Kind.COUNTER:
        window = f"{row.exported}{RUNS}[{WINDOW}]"
        per = f"increase({window})" if rare else f"rate({window})" if row.unit in RATES else f"60 * rate({window})"
        return [(f"sum by ({by}) ({per})", legend)]
    if row.kind == Kind.HISTOGRAM:
        buckets = f"sum by ({by}, le) (increase({row.exported}{RUNS}[{QUANTILES_OVER}]))"
        return [(f"histogram_quantile({share}, {buckets})", f"{legend} p{100 * share:.0f}") for share in (0.5, 0.95)]
    return [(f"max by ({by}) (last_over_time({row.exported}{RUNS}[{WINDOW}]))", legend)]


def _panel(panel: Panel) -> dict[str, Any]:
    rows = [row_named(name) for name in panel.names]
    units = {row.unit for row in rows}
    assert len(units) == 1 or not units & UNITS.keys(), f"{panel.title} draws {units} on one axis"
    found = [(expression, legend, row) for row in rows for expression, legend in expressions(row, rare=panel.rare)]
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": "\n".join(f"{row.name}: {row.description}" for row in rows),
        "datasource": SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend if len(rows) == 1 else f"{legend} {row.name.rpartition('/')[2]}",
            }
            for number, (expression, legend, row) in enumerate(found)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": _unit(rows[0]),
                "custom": {
                    "fillOpacity": 20 if panel.stacked else 0,
                    "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
                    "spanNulls": True,
                },
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def _unit(row: Row) -> str:
    if row.kind == Kind.COUNTER and row.unit in RATES:
        return RATES[row.unit]
    return UNITS.get(row.unit, "short")


def row_named(name: str) -> Row:
    """A row of the table."""
    (row,) = [row for row in TABLE.rows if row.name == name]
    return row


def _variables() -> list[dict[str, Any]]:
    steps = row_named("run/step").exported
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return [source, _variable("experiment", steps), _variable("run", f'{steps}{{experiment=~"$experiment"}}')]


def _variable(name: str, series: str) -> dict[str, Any]:
    query = f"label_values({series}, {name})"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "sort": 2,
        "current": {"text": ["All"], "value": ["$__all"]},
    }
