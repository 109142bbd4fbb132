"""Which function a name in the configuration stands for. A new algorithm is a function and a line here.

Letters: N completions of the global batch, R reward components, G group size, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from mrpo.advantages.credit import Credited, GroupShaping
from mrpo.advantages.dr_grpo import dr_grpo_advantages
from mrpo.advantages.gdpo import gdpo_advantages
from mrpo.advantages.groups import Mask, Matrix, Values, doubles
from mrpo.advantages.grpo import grpo_advantages
from mrpo.advantages.process_supervision import process_supervision_advantages
from mrpo.advantages.pure import pure_advantages
from mrpo.advantages.rloo import rloo_advantages
from mrpo.advantages.step_shaping import shape_step_advantages
from mrpo.choices import AdvantageKind, Shaping
from mrpo.config import AlgorithmConfig
from mrpo.errors import ConfigError

AdvantageFunction = Callable[[Matrix, Values, int, float, Mask | None], Tensor]


def _of_sum(function: Callable[[Tensor, int, float, Mask | None], Tensor]) -> AdvantageFunction:
    """Let a function of total rewards take components and weights."""

    def advantages(components: Matrix, weights: Values, group_size: int, eps: float, valid: Mask | None) -> Tensor:
        return function(doubles(components) @ doubles(weights), group_size, eps, valid)

    return advantages


# (components [N, R], weights [R], group_size, eps, valid [N]) → advantages of completions [N].
ADVANTAGES: dict[str, AdvantageFunction] = {
    AdvantageKind.GRPO: _of_sum(grpo_advantages),
    AdvantageKind.GDPO: gdpo_advantages,
    AdvantageKind.DR_GRPO: _of_sum(lambda rewards, size, eps, valid: dr_grpo_advantages(rewards, size, valid)),
    AdvantageKind.RLOO: _of_sum(lambda rewards, size, eps, valid: rloo_advantages(rewards, size, valid)),
}


def advantage_function(name: str) -> AdvantageFunction:
    """The entry of `ADVANTAGES` with that name.

    Raises:
        ConfigError: there is none; the message lists the known ones.
    """
    if name not in ADVANTAGES:
        raise ConfigError(f"algorithm.advantage={name!r} is unknown; known: {', '.join(ADVANTAGES)}")
    return ADVANTAGES[name]


def _unshaped(group: Sequence[Credited], config: AlgorithmConfig, process_weight: float) -> list[list[float]]:
    return [[item.advantage + 0.0] * item.num_tokens for item in group]


def _mrpo(group: Sequence[Credited], config: AlgorithmConfig, process_weight: float) -> list[list[float]]:
    return [
        shape_step_advantages(
            item.advantage,
            item.verdicts,
            item.spans,
            item.num_tokens,
            item.answer_reward,
            threshold=config.threshold,
            base=config.base,
            schedule=config.schedule,
        )
        for item in group
    ]


def _pure(group: Sequence[Credited], config: AlgorithmConfig, process_weight: float) -> list[list[float]]:
    return pure_advantages(group, process_weight=process_weight, temperature=config.credit_temperature)


def _process_supervision(
    group: Sequence[Credited], config: AlgorithmConfig, process_weight: float
) -> list[list[float]]:
    return process_supervision_advantages(group, process_weight=process_weight, eps=config.eps)


# (completions of a group that are in its baseline, settings, weight of the process reward) → token advantages [G][T].
SHAPINGS: dict[Shaping, GroupShaping] = {
    Shaping.NONE: _unshaped,
    Shaping.MRPO: _mrpo,
    Shaping.PURE: _pure,
    Shaping.PROCESS_SUPERVISION: _process_supervision,
}
