"""`python -m mrpo.ablation study=<name> [runs_dir=…] [overrides]`: train the variants of a study, one after the other.

Exit codes: 0 all finished, 1 some failed, 2 something the user can mend (one line says what), 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from mrpo.ablation.console import StudyConsole
from mrpo.ablation.driver import StudyOutcome, run_study, study_folder
from mrpo.ablation.plan import make_plan
from mrpo.ablation.study import load_study, study_names
from mrpo.ablation.trainer import ProcessTrainer
from mrpo.command_line import FAILED, INTERRUPTED, exit_code, quiet_libraries
from mrpo.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
    """Run or go on with a study; returns the exit code."""
    logging.basicConfig(level=logging.WARNING)
    return exit_code(lambda: _study(arguments))


def _study(arguments: Sequence[str]) -> int:
    console = StudyConsole()
    name, overrides = split_arguments(arguments)
    plan = make_plan(load_study(name), overrides)
    folder = study_folder(plan, plan.variants[0].config.runs_dir)
    with ProcessTrainer() as trainer:
        outcome = run_study(plan, folder, trainer, console)
    console.note(f"results: {folder / 'results.md'}, results.parquet, results.svg")
    return _conclude(outcome, console)


def split_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The study's name, and the overrides.

    Raises:
        ConfigError: there is not exactly one `study=<name>`.
    """
    names = [item.removeprefix("study=") for item in arguments if item.startswith("study=")]
    if len(names) != 1:
        raise ConfigError(
            f"got {' '.join(arguments) or 'no argument'}; expected one study=<name> of {', '.join(study_names())}, "
            "and overrides as for training"
        )
    return names[0], [item for item in arguments if not item.startswith("study=")]


def _conclude(outcome: StudyOutcome, console: StudyConsole) -> int:
    """Say how the study ended; the exit code for it."""
    for record in outcome.failed:
        console.note(f"failed: {record.label}: {record.error}")
    if outcome.is_interrupted:
        console.note("interrupted; the same command goes on from here")
        return INTERRUPTED
    return FAILED if outcome.failed else 0


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
