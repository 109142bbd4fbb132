"""Download or build a wheel of each pin, a few at a time, going on where an earlier try ended."""

from __future__ import annotations

import logging
import shutil
import subprocess
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mrpo.errors import DataError, ResourceError
from mrpo.wheelhouse.pins import Pin, without_wheel

logger = logging.getLogger(__name__)

BATCH = 8  # pins a call of pip: what an interruption costs, against a second of start-up


def gather(pins: Sequence[Pin], folder: Path) -> list[Path]:
    """Wheels of all `pins` in `folder`, those that are there already left as they are.

    Args:
        pins: what to fetch. Packages that publish no wheel are built here, for this machine's Python.
        folder: existing; afterwards it holds the wheels of `pins` alone.

    Returns:
        The wheels, by name.

    Raises:
        DataError: pip cannot get one.
    """
    missing = without_wheel(pins, _names(folder))
    if len(missing) < len(pins):
        logger.info("%d of %d wheels are there", len(pins) - len(missing), len(pins))
    fetched = folder / ".fetched"
    shutil.rmtree(fetched, ignore_errors=True)
    with _pip(folder / ".pip") as pip:
        for first in range(0, len(missing), BATCH):
            batch = missing[first : first + BATCH]
            _fetch(pip, batch, fetched)
            for wheel in fetched.glob("*.whl"):
                wheel.replace(folder / wheel.name)  # whole or absent: a later try trusts what is there
            done = len(pins) - len(missing) + first + len(batch)
            logger.info("%d of %d wheels, %s", done, len(pins), ", ".join(map(str, batch)))
    shutil.rmtree(fetched, ignore_errors=True)
    lacking = without_wheel(pins, _names(folder))
    if lacking:
        raise DataError(f"pip left no wheel of {', '.join(map(str, lacking))} under {folder}")
    wanted = set(_names(folder)) - set(_not_of(pins, _names(folder)))
    return sorted(folder / name for name in wanted)


def _not_of(pins: Sequence[Pin], names: Sequence[str]) -> list[str]:
    """Wheels of other versions, left by a try with other requirements."""
    return [name for name in names if len(without_wheel(pins, [name])) == len(pins)]


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.whl")]


@contextmanager
def _pip(folder: Path) -> Iterator[Path]:
    """An interpreter with a pip of its own: a system's Python may lack one."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    except subprocess.CalledProcessError:
        raise ResourceError(
            "this Python makes no virtual environment with pip; install its venv package, or set PYTHON=<another>"
        ) from None
    try:
        yield folder / "bin" / "python"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(python: Path, pins: Sequence[Pin], folder: Path) -> None:
    command = [str(python), "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--wheel-dir", str(folder), *map(str, pins)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        reasons = [line for line in answer.stderr.splitlines() if line.startswith("ERROR")] or [answer.stderr.strip()]
        raise DataError(
            f"pip could not get {', '.join(map(str, pins))}: {reasons[-1]}; the same command goes on from here"
        )
