"""Our dashboard beside Ray's own: Ray's head writes a folder that its Grafana reads, and ours is put into it.

Ray describes Grafana's set-up for every session under `<session>/metrics/grafana/`, or where RAY_METRICS_OUTPUT_ROOT
and RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR say; a Grafana that was started with it shows every dashboard there.
"""

from __future__ import annotations

import os
from pathlib import Path

from mrpo.telemetry import grafana

DASHBOARD = Path("docker/grafana/dashboards/mrpo.json")
NAME = "mrpo_grafana_dashboard.json"
UID = "rayMrpoDashboard"  # another than that of docker/: a Grafana may be shown both


def dashboards_folder(session: Path) -> Path:
    """Where the head of a session puts its dashboards.

    Args:
        session: Ray's folder of it: `/tmp/ray/session_latest`.
    """
    root = Path(os.environ.get("RAY_METRICS_OUTPUT_ROOT", session / "metrics"))
    return Path(os.environ.get("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR", root / "grafana" / "dashboards"))


def put_beside_rays(session: Path) -> Path | None:
    """Write our dashboard there; None: there is no such folder, because the head is elsewhere or has no dashboard."""
    folder = dashboards_folder(session)
    if not folder.is_dir():
        return None
    path = folder / NAME
    path.write_text(grafana.text(UID), encoding="utf-8")
    return path
