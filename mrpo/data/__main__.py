"""`python -m mrpo.data prepare data.set=<name> data.source=<folder> data.out=<folder>`: prepare a data set.

Exit codes: 0 done, 2 something the user can mend (one line says what), 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mrpo.command_line import exit_code, quiet_libraries
from mrpo.compose import settings_tree
from mrpo.data.download import Downloader
from mrpo.data.prepare import Prepared, prepare
from mrpo.data.sets import SETS
from mrpo.data.settings import PrepareCommand, PrepareConfig
from mrpo.data.tables import funnel_table, leak_table, rationale_table
from mrpo.errors import ConfigError
from mrpo.validation import build

USAGE = "python -m mrpo.data prepare data.set=<name> data.source=<folder with the set> data.out=<new folder>"


def main(arguments: Sequence[str]) -> int:
    """Prepare a set. Returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    return exit_code(lambda: _prepare(arguments))


def _prepare(arguments: Sequence[str]) -> int:
    config = configure(arguments)
    prepared = prepare(config, downloads=Downloader(cache=Path(config.cache_dir).expanduser()))
    _show(prepared, config)
    return 0


def configure(arguments: Sequence[str]) -> PrepareConfig:
    """The settings of the command line.

    Raises:
        ConfigError: not the `prepare` command, or an unknown, missing or ill-typed setting.
    """
    if not arguments or arguments[0] != "prepare":
        raise ConfigError(f"got {' '.join(arguments) or 'no command'}; expected: {USAGE}")
    tree = settings_tree(arguments[1:])
    section = tree.get("data")
    given = section if isinstance(section, dict) else {}
    for name, example in (("set", "|".join(SETS)), ("out", "<new folder>")):
        if given.get(name) is None and not set(tree) - {"data"}:
            raise ConfigError(f"data.{name} is missing; expected data.{name}={example}, as in: {USAGE}")
    return build(PrepareCommand, {"data": {}} | tree).data


def _show(prepared: Prepared, config: PrepareConfig) -> None:
    console = Console(highlight=False, emoji=False)
    console.print(funnel_table(f"{prepared.manifest['set']}: questions", prepared.funnel))
    rationales = prepared.manifest["rationales"]
    if rationales is not None:
        console.print(rationale_table(rationales))
        for file, same in rationales["as_published"].items():
            if same is False:
                console.print(f"{file} is not the file MedThink published (its digest differs)", markup=False)
    if prepared.leaks:
        console.print(leak_table(prepared.leaks, excluded=config.exclude_leaks))
    for note in prepared.manifest["renamed_images"]:
        console.print(f"renamed: {note}", markup=False, soft_wrap=True)
    facts = prepared.manifest
    console.print(f"open-ended rule: {facts['open_rule']}; license: {facts['license']}", markup=False, soft_wrap=True)
    console.print(f"prepared: {prepared.out}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
