"""`python -m mrpo.telemetry`: write the Grafana dashboard and the tables of docs/metrics.md anew, after `rows.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from mrpo.telemetry import grafana, tables
from mrpo.telemetry.provision import DASHBOARD

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs" / "metrics.md"


def main() -> int:
    """Write both."""
    (REPOSITORY / DASHBOARD).write_text(grafana.text(), encoding="utf-8")
    DOCUMENT.write_text(tables.put_into(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
