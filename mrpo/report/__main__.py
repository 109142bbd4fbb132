"""`python -m mrpo.report run=<folder>`: write a run's report again, also of one that still goes on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mrpo.command_line import exit_code, quiet_libraries
from mrpo.errors import ConfigError
from mrpo.report.render import write_report

USAGE = "python -m mrpo.report run=<a run folder, e.g. runs/phantom/20260101-120000>"


def main(arguments: Sequence[str]) -> int:
    """Render the report. Returns the exit code: 0, or 2 with one line of explanation."""
    logging.basicConfig(level=logging.WARNING)
    return exit_code(lambda: _report(arguments))


def _report(arguments: Sequence[str]) -> int:
    path = write_report(run_argument(arguments))
    Console(highlight=False).print(f"report: {path.resolve()}", markup=False, soft_wrap=True)
    return 0


def run_argument(arguments: Sequence[str]) -> Path:
    """The folder of `run=<folder>`.

    Raises:
        ConfigError: there is not exactly this one argument.
    """
    if len(arguments) != 1 or not arguments[0].startswith("run=") or arguments[0] == "run=":
        raise ConfigError(f"got {' '.join(arguments) or 'no argument'}; expected: {USAGE}")
    return Path(arguments[0].removeprefix("run=")).expanduser()


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
