"""`python -m mrpo.telemetry [Ray's session folder]`: put the Grafana dashboard where it is read.

Without a folder it writes docker/grafana/dashboards/mrpo.json and the tables of docs/metrics.md anew, after `rows.py`.
With one (`/tmp/ray/session_latest`, on the head) it puts the dashboard beside Ray's own, as a run there does.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mrpo.command_line import exit_code
from mrpo.errors import ConfigError
from mrpo.telemetry import grafana, tables
from mrpo.telemetry.provision import DASHBOARD, dashboards_folder, put_beside_rays

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = Path("docs/metrics.md")


def main(arguments: Sequence[str], repository: Path = REPOSITORY) -> int:
    """Write; returns the exit code."""
    return exit_code(lambda: _write(arguments, repository))


def _write(arguments: Sequence[str], repository: Path) -> int:
    if arguments:
        session = Path(arguments[0])
        written = put_beside_rays(session)
        if written is None:
            raise ConfigError(
                f"{dashboards_folder(session)} is not there: give the session folder of a Ray head with its dashboard"
            )
        logger.info("written: %s", written)
        return 0
    (repository / DASHBOARD).write_text(grafana.text(), encoding="utf-8")
    document = repository / DOCUMENT
    document.write_text(tables.put_into(document.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
