"""`python -m mrpo.judge_cost [overrides]`: what a run's judge will cost, without asking it; takes what training takes.

Exit codes: 0 done, 2 something the user can mend (one line says what).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from mrpo.choices import JudgeKind
from mrpo.command_line import exit_code, quiet_libraries
from mrpo.compose import compose_config
from mrpo.config import Config
from mrpo.errors import ConfigError
from mrpo.judge_cost.estimate import estimate
from mrpo.judge_cost.sample import sample_rows
from mrpo.judge_cost.table import WIDTH, show
from mrpo.judge_prices import models_of, price_example

# What a run needs and its costs do not depend on, or only a little: both may be asked for before they are there.
STAND_INS = {"data.root": "unknown", "judge.url": "http://unknown/v1"}


def main(arguments: Sequence[str]) -> int:
    """Print the estimate; returns the exit code."""
    return exit_code(lambda: _estimate(arguments))


def _estimate(arguments: Sequence[str]) -> int:
    config, stood_in = configure(arguments)
    require_priced(config)
    sample = sample_rows(config, data_is_known=config.data.root is not None and "data.root" not in stood_in)
    show(config, estimate(config, sample), Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH))
    return 0


def configure(arguments: Sequence[str]) -> tuple[Config, list[str]]:
    """The configuration that training would have, and the settings that had to be made up for it.

    Raises:
        ConfigError: as `mrpo.compose.compose_config`.
    """
    try:
        return compose_config(arguments), []
    except ConfigError:
        missing = [key for key in STAND_INS if not _given(key, arguments)]
        if not missing:
            raise
        return compose_config([*arguments, *(f"{key}={STAND_INS[key]}" for key in missing)]), missing


def require_priced(config: Config) -> None:
    """Check that there is a judge, and that its calls have a price where they are paid for.

    Raises:
        ConfigError: one of both is missing.
    """
    judge = config.judge
    if judge.kind == JudgeKind.NONE:
        raise ConfigError(
            "judge.kind=none asks nobody and costs nothing; name the judge to estimate, e.g. judge=openai_compatible "
            "judge.model=<name>"
        )
    if judge.kind != JudgeKind.OPENAI_COMPATIBLE:
        return
    for model in models_of(judge):
        if model not in judge.prices:
            raise ConfigError(
                f"judge.prices has no {model}: set its prices per million tokens, e.g. {price_example(model)} (zeros "
                "for a server of your own)"
            )


def _given(key: str, arguments: Sequence[str]) -> bool:
    names = (f"{key}=", "judge.endpoints=") if key == "judge.url" else (f"{key}=",)
    return any(item.lstrip("+").startswith(names) for item in arguments)


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
