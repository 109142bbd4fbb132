"""The dashboard: what is committed is what the table makes, and every query asks for a metric of the table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrpo.telemetry import grafana, tables
from mrpo.telemetry.__main__ import main
from mrpo.telemetry.provision import DASHBOARD, NAME, put_beside_rays
from mrpo.telemetry.rows import TABLE
from mrpo.telemetry.table import Kind, Stage
from tests.locations import REPOSITORY

BOARD: dict[str, Any] = json.loads((REPOSITORY / DASHBOARD).read_text())


def queries(board: dict[str, Any]) -> dict[str, list[str]]:
    """PromQL by the title of its panel."""
    return {
        panel["title"]: [target["expr"] for target in panel["targets"]]
        for panel in board["panels"]
        if panel["type"] != "row"
    }


def test_the_committed_dashboard_and_tables_are_those_of_the_table() -> None:
    remedy = "run python -m mrpo.telemetry and commit what it writes"
    assert (REPOSITORY / DASHBOARD).read_text() == grafana.text(), remedy
    document = (REPOSITORY / "docs" / "metrics.md").read_text()
    assert tables.put_into(document) == document, remedy


def test_there_is_a_row_for_each_stage_and_each_panel_lies_under_its_own() -> None:
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert sorted(rows) == sorted(stage.value for stage in Stage)
    row = ""
    for panel in BOARD["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        names = [line.split(":")[0] for line in panel["description"].splitlines()]
        stages = {item.stage.value for item in TABLE.rows if item.name in names}
        assert row in stages, panel["title"]


def test_panels_do_not_overlap_and_have_their_own_ids() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < grafana.COLUMNS for x, _ in cells)
        taken |= cells


def test_every_query_asks_for_a_metric_of_the_table_in_the_way_of_its_kind() -> None:
    kinds = {row.exported: row.kind for row in TABLE.rows}
    ways = {
        Kind.GAUGE: r"max by \(.*\) \(last_over_time\(.*\[\$__rate_interval\]\)\)",
        Kind.COUNTER: r"sum by \(.*\) \((increase|rate|60 \* rate)\(.*\[\$__rate_interval\]\)\)",
        Kind.HISTOGRAM: r"histogram_quantile\(0\.\d+, sum by \(.*le\) \(increase\(.*\)\)\)",
    }
    for title, expressions in queries(BOARD).items():
        for expression in expressions:
            (name,) = re.findall(r"\bray_\w+", expression)
            assert re.fullmatch(ways[kinds[name]], expression), title
            assert expression.count("(") == expression.count(")")


def test_rare_events_are_counted_and_a_title_says_what_its_panel_draws() -> None:
    """A window is as long as Grafana makes it: a number of it is "by the minute" only as a rate."""
    for title, expressions in queries(BOARD).items():
        if not any("_total" in expression for expression in expressions):
            continue
        way = "60 * rate(" if "by the minute" in title else "rate(" if "a second" in title else "increase("
        assert all(f" ({way}" in expression for expression in expressions), title
    for name in ("faults/{kind}", "faults/recovery_s", "judge/failures/{reason}", "policy/skipped_update"):
        counted = f"increase({grafana.row_named(name).exported}"
        assert any(counted in expression for found in queries(BOARD).values() for expression in found), name


def test_what_a_person_watches_is_on_the_dashboard() -> None:
    shown = "\n".join(expression for expressions in queries(BOARD).values() for expression in expressions)
    for name in (
        "rollout/tokens_per_s", "rollout/waiting", "rollout/running", "judge/waiting", "judge/in_flight",
        "judge/call_s", "judge/failures/{reason}", "judge/cost", "steps/valid_share_at/{position}",
        "cascade/early_share",
        "reward/process", "policy/kl", "policy/clip_share", "policy/entropy", "policy/grad_norm", "time/learn_s",
        "time/sync_s", "sync/bytes", "rollout/staleness", "policy/gpu_memory_bytes", "faults/{kind}",
        "sft/loss", "heldout/loss",
    ):  # fmt: skip
        assert grafana.row_named(name).exported in shown, name


def test_provisioning_points_at_the_dashboards_and_at_rays_list_of_nodes() -> None:
    folder = REPOSITORY / "docker"
    providers = yaml.safe_load((folder / "grafana/provisioning/dashboards/dashboards.yml").read_text())["providers"]
    assert [item["options"]["path"] for item in providers] == [
        "/var/lib/grafana/dashboards",
        "/tmp/ray/session_latest/metrics/grafana/dashboards",
    ]
    (source,) = yaml.safe_load((folder / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    (job,) = yaml.safe_load((folder / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]


def test_ours_goes_beside_rays_own_under_a_uid_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_METRICS_OUTPUT_ROOT", "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert put_beside_rays(tmp_path) is None
    assert main([str(tmp_path)]) == 2
    assert "give the session folder of a Ray head" in " ".join(capsys.readouterr().err.split())
    folder = tmp_path / "metrics" / "grafana" / "dashboards"
    folder.mkdir(parents=True)
    assert main([str(tmp_path)]) == 0
    ours = json.loads((folder / NAME).read_text())
    assert ours["uid"] != BOARD["uid"]
    assert ours["panels"] == BOARD["panels"]
