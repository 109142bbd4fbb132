"""`python -m mrpo.convert <model> <out>`: rewrite an InternVL checkpoint from one layout into the other.

The model type decides the direction: the custom-code layout becomes native, a native checkpoint becomes custom.
Exit codes: 0 done, 1 a fault, 2 something the user can mend (one line says what), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import rich.console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from mrpo.checkpoint_source import checkpoint_folder
from mrpo.command_line import exit_code, quiet_libraries
from mrpo.convert.folder import convert, plan_conversion
from mrpo.errors import ConfigError

USAGE = "make convert MODEL=<folder or hub id> OUT=<new folder>"


def main(arguments: Sequence[str]) -> int:
    """Convert one checkpoint; returns the exit code."""
    return exit_code(lambda: _convert(arguments))


def _convert(arguments: Sequence[str]) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="mrpo.convert", usage=USAGE, exit_on_error=False)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--revision")
    try:
        given, unknown = parser.parse_known_args(arguments)
    except (argparse.ArgumentError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == 0:  # --help
            return 0
        raise ConfigError(f"give a model and a new folder: {USAGE}") from None
    if unknown or not given.model or not given.out:
        raise ConfigError(f"give a model and a new folder, got {' '.join(arguments)!r}: {USAGE}")
    out = Path(given.out).expanduser().absolute()
    if out.exists():  # before gigabytes are fetched
        raise ConfigError(f"OUT={out} exists already; give a new folder")
    conversion = plan_conversion(checkpoint_folder(given.model, revision=given.revision, setting="MODEL"))
    console = rich.console.Console(stderr=True, highlight=False)
    layouts = ("the custom-code layout", "the native layout")
    before, after = layouts if conversion.to_native else reversed(layouts)
    console.print(Text(f"{conversion.source}: from {before} to {after}"), soft_wrap=True)
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("weights", total=conversion.num_bytes)
        convert(conversion, out, progress=lambda num_bytes: bar.advance(task, num_bytes))
    size, seconds = conversion.num_bytes / 1024**3, time.monotonic() - started
    console.print(
        Text(f"✓ {out}: {len(conversion.tensors)} tensors, {size:.2f} GiB, {seconds:.1f} s", "green"), soft_wrap=True
    )
    return 0


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
