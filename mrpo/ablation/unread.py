"""Settings that a training does not read where others stand as they do: varying these makes the same run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mrpo.choices import JudgeKind, Schedule, Shaping
from mrpo.config import Config
from mrpo.scoring import rewards_use_verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """Why a setting changes nothing, and what would mend that."""

    cause: str
    remedy: str


Check = Callable[[Config], Unread | None]


def find_unread(key: str, config: Config) -> Unread | None:
    """Whether a training with `config` goes without the setting `key`; None: it reads it, as far as is known here.

    Known are the settings that studies of this project vary, and those of step credit. What a setting means for
    evaluation does not count: `algorithm.threshold` says everywhere which answers are correct.
    """
    found = (check(config) for check in CHECKS.get(key, ()))
    return next((item for item in found if item is not None), None)


def _without_judge(config: Config) -> Unread | None:
    if config.judge.kind != JudgeKind.NONE:
        return None
    return Unread(cause="judge.kind=none", remedy="set a judge")


def _without_shaping(shaping: Shaping) -> Check:
    def check(config: Config) -> Unread | None:
        if config.algorithm.shaping == shaping:
            return None
        return Unread(cause=f"algorithm.shaping={config.algorithm.shaping}", remedy=f"set algorithm.shaping={shaping}")

    return check


def _without_schedule(config: Config) -> Unread | None:
    if config.algorithm.schedule != Schedule.NONE:
        return None
    return Unread(cause="algorithm.schedule=none", remedy="set algorithm.schedule=exponential")


def _with_equal_weights(config: Config) -> Unread | None:
    if config.algorithm.base != 1.0:
        return None
    return Unread(cause="algorithm.base=1, which weighs all steps the same", remedy="set another algorithm.base")


def _without_use_of_verdicts(config: Config) -> Unread | None:
    if rewards_use_verdicts(config.algorithm, config.reward):
        return None
    return Unread(
        cause=f"algorithm.shaping={config.algorithm.shaping} and reward.process_weight=0, which use no verdict",
        remedy="set reward.process_weight=1",
    )


def _without_use_of_steps(config: Config) -> Unread | None:
    unused = _without_judge(config) or _without_use_of_verdicts(config)
    if unused is None or config.reward.step_count_weight > 0:
        return None
    return Unread(
        cause=f"reward.step_count_weight=0 and {unused.cause}", remedy=f"{unused.remedy}, or reward.step_count_weight=1"
    )


_SHAPED = (_without_shaping(Shaping.MRPO), _without_judge)
CHECKS: dict[str, tuple[Check, ...]] = {
    "algorithm.base": (*_SHAPED, _without_schedule),
    "algorithm.schedule": (*_SHAPED, _with_equal_weights),
    "algorithm.threshold": (*_SHAPED, _without_schedule),
    "algorithm.credit_temperature": (_without_shaping(Shaping.PURE), _without_judge),
    "algorithm.step_strategy": (_without_use_of_steps,),
    "judge.noise": (_without_judge, _without_use_of_verdicts),
    "reward.process_weight": (_without_judge,),
}
