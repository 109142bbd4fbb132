"""`python -m mrpo.plan [overrides]`: what a run will need, without starting anything; takes what training takes.

Exit codes: 0 it fits, 2 it does not, or something else the user can mend (one line says what).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from mrpo.command_line import exit_code, quiet_libraries
from mrpo.compose import compose_config
from mrpo.config import Config
from mrpo.errors import ConfigError, ResourceError
from mrpo.plan.plan import make_plan
from mrpo.plan.refusal import refusal_of
from mrpo.plan.remedies import remedies_of
from mrpo.plan.tables import show

# What a run needs and its plan does not depend on: a recipe may be planned before its data and judge are there.
STAND_INS = {"data.root": "unknown", "judge.url": "http://unknown/v1", "judge.model": "unknown"}


def main(arguments: Sequence[str]) -> int:
    """Print the plan; returns the exit code."""
    return exit_code(lambda: _plan(arguments))


def _plan(arguments: Sequence[str]) -> int:
    plan = make_plan(configure(arguments))
    remedies = [] if plan.fits else remedies_of(plan)
    show(plan, remedies, Console(highlight=False))
    if not plan.fits:
        raise ResourceError(refusal_of(plan, remedies))
    return 0


def configure(arguments: Sequence[str]) -> Config:
    """The configuration that training would have, with stand-ins for data and judge where none are named.

    Raises:
        ConfigError: as `mrpo.compose.compose_config`.
    """
    try:
        return compose_config(arguments)
    except ConfigError:
        missing = [f"{key}={value}" for key, value in STAND_INS.items() if not _given(key, arguments)]
        if {"judge=vllm", "judge.kind=vllm"} & set(arguments):
            missing = [item for item in missing if not item.startswith("judge.")]  # it has no address
        if not missing:
            raise
        return compose_config([*arguments, *missing])


def _given(key: str, arguments: Sequence[str]) -> bool:
    return any(item.lstrip("+").startswith(f"{key}=") for item in arguments)


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
