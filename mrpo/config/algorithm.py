"""From completions to rewards, advantages and the loss."""

from __future__ import annotations

import math

from pydantic.dataclasses import dataclass

from mrpo.choices import (
    AdvantageKind,
    Aggregation,
    AnswerKind,
    EncoderPlacement,
    Importance,
    KLEstimator,
    Ratio,
    Schedule,
    Shaping,
    TruncatedPolicy,
)
from mrpo.config.fields import STRICT, NonNegative, NonNegativeInt, Positive, PositiveInt, Share


@dataclass(kw_only=True, frozen=True, config=STRICT)
class LossConfig:
    """The clipped surrogate and its KL penalty (algorithm §5)."""

    ratio: Ratio = Ratio.TOKEN
    epsilon_low: Share = 0.2
    epsilon_high: NonNegative = 0.2
    beta: NonNegative = 0.04  # KL weight; 0 loads no reference model
    kl_estimator: KLEstimator = KLEstimator.K3
    aggregation: Aggregation = Aggregation.SEQUENCE_MEAN
    constant_length: PositiveInt = 512  # tokens a completion is divided by under aggregation=constant
    importance: Importance = Importance.TRUNCATE  # by exp(old_logprobs − rollout_logprobs) of each token
    importance_cap: Positive = 2.0  # largest weight
    importance_floor: NonNegative = 0.5  # smallest weight, under importance=mask

    def __post_init__(self) -> None:
        """Refuse what is fine one by one and wrong together."""
        if self.ratio == Ratio.SEQUENCE and self.aggregation != Aggregation.SEQUENCE_MEAN:
            raise ValueError(
                f"ratio=sequence is defined with aggregation=sequence_mean, got {self.aggregation}; "
                "set that, or ratio=sequence_token"
            )
        floor, cap = self.importance_floor, self.importance_cap
        if self.importance == Importance.MASK and not (floor <= 1.0 <= cap and floor < cap):
            raise ValueError(
                f"importance=mask keeps weights from importance_floor={floor:g} to importance_cap={cap:g}; the floor "
                "must be below the cap, and 1 (no mismatch) from one to the other"
            )
        if self.importance == Importance.TRUNCATE and cap < 1.0:
            raise ValueError(
                f"importance=truncate with importance_cap={cap:g} cuts the weight of every token, those without a "
                "mismatch (1) too; set importance_cap to 1 or more"
            )


@dataclass(kw_only=True, frozen=True, config=STRICT)
class AlgorithmConfig:
    """From rewards to token advantages (algorithm §3, §4)."""

    advantage: AdvantageKind = AdvantageKind.GRPO
    eps: Positive = 1e-4  # added to the standard deviation
    shaping: Shaping = Shaping.MRPO
    base: Positive = math.e  # weight of the first step's penalty relative to the last's
    schedule: Schedule = Schedule.EXPONENTIAL
    threshold: Share = 0.6  # an answer reward above it counts as right
    credit_temperature: NonNegative = 0.1  # of shaping=pure's soft minimum over steps; 0: the minimum itself
    step_strategy: str = "sentence"  # what one step is; "fixed_tokens:N" cuts the reasoning every N tokens instead
    truncated: TruncatedPolicy = TruncatedPolicy.KEEP
    loss: LossConfig = LossConfig()


@dataclass(kw_only=True, frozen=True, config=STRICT)
class BertScoreConfig:
    """The encoder behind the semantic half of `reward.answer.kind=mixed`."""

    model: str | None = None  # encoder folder or hub id; null: its weight goes to ROUGE and BLEU, loudly
    num_layers: PositiveInt = 12  # the layer whose vectors are compared; at most what the encoder has
    placement: EncoderPlacement = EncoderPlacement.IN_PROCESS
    batch_size: PositiveInt = 64


@dataclass(kw_only=True, frozen=True, config=STRICT)
class AnswerConfig:
    """The answer's reward."""

    kind: AnswerKind = AnswerKind.EXACT
    bertscore: BertScoreConfig = BertScoreConfig()


@dataclass(kw_only=True, frozen=True, config=STRICT)
class RewardConfig:
    """Rewards of one completion (algorithm §2) and their weights."""

    answer: AnswerConfig = AnswerConfig()
    answer_weight: NonNegative = 1.0
    process_weight: NonNegative = 1.0
    step_count_weight: NonNegative = 1.0
    min_steps: NonNegativeInt = 4
    max_steps: PositiveInt = 10
