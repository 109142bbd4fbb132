"""Batches for the tests of the loss, and a small model whose gradient adds up over micro-batches and ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mrpo.choices import Aggregation, Importance, KLEstimator, Ratio
from mrpo.config import LossConfig
from mrpo.losses import LossInputs, global_denominator, policy_loss

VOCABULARY, WIDTH = 17, 8


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def random_inputs(num: int = 9, length: int = 9, seed: int = 0) -> LossInputs:
    """Completions of different lengths, each as a whole more or less likely than under the old policy."""
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float, columns: int = length) -> Tensor:
        return scale * torch.randn(num, columns, generator=generator, dtype=torch.float64)

    logprobs = -noise(1.0).abs()
    old_logprobs = logprobs.detach() + noise(0.3) + noise(0.4, columns=1)
    lengths = torch.randint(1, length + 1, (num, 1), generator=generator)
    return LossInputs(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=old_logprobs,
        advantages=noise(1.0),
        loss_mask=torch.arange(length).expand(num, length) < lengths,
        ref_logprobs=logprobs.detach() + noise(0.3),
        rollout_logprobs=old_logprobs + noise(0.6),
    )


def rows_of(inputs: LossInputs, rows: Sequence[int], denominator: float) -> LossInputs:
    """Some completions of a batch, with less padding where that is possible."""
    assert inputs.ref_logprobs is not None
    assert inputs.rollout_logprobs is not None
    length = int(inputs.loss_mask[rows].sum(dim=1).max())
    return LossInputs(
        logprobs=inputs.logprobs[rows, :length],
        old_logprobs=inputs.old_logprobs[rows, :length],
        advantages=inputs.advantages[rows, :length],
        loss_mask=inputs.loss_mask[rows, :length],
        ref_logprobs=inputs.ref_logprobs[rows, :length],
        rollout_logprobs=inputs.rollout_logprobs[rows, :length],
        denominator=denominator,
    )


def gradient(inputs: LossInputs, config: LossConfig) -> Tensor:
    """[B, T] of the loss by the log-probs."""
    (result,) = torch.autograd.grad(policy_loss(inputs, config).loss, inputs.logprobs)
    return result


def variants(**fixed: object) -> list[LossConfig]:
    """Every combination that `LossConfig` accepts of ratio, aggregation, KL estimator and off-policy correction."""
    axes: dict[str, Sequence[object]] = {
        "ratio": list(Ratio),
        "aggregation": list(Aggregation),
        "kl_estimator": list(KLEstimator),
        "importance": list(Importance),
    }
    axes |= {name: [value] for name, value in fixed.items()}
    chosen = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [
        LossConfig(**{"beta": 0.1, "constant_length": 12, **choice})  # type: ignore[arg-type]
        for choice in chosen
        if choice["ratio"] != Ratio.SEQUENCE or choice["aggregation"] == Aggregation.SEQUENCE_MEAN
    ]


def name_of(config: LossConfig) -> str:
    return f"{config.ratio}-{config.aggregation}-{config.kl_estimator}-{config.importance}"


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def model_gradient(
    config: LossConfig, parts: Sequence[Sequence[int]], *, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, float]:
    """Gradient of a bigram model's parameters, accumulated over micro-batches of a batch of nine; and the loss.

    Args:
        config: of the loss.
        parts: completions of each micro-batch; the denominator is that of all nine.
        dtype: of everything.
    """
    inputs = random_inputs(seed=3)
    generator = torch.Generator().manual_seed(4)
    num, length = inputs.loss_mask.shape
    tokens = torch.randint(VOCABULARY, (num, length + 1), generator=generator)
    embedding = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(WIDTH, VOCABULARY, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    def logprobs_of(rows: Sequence[int]) -> Tensor:
        logits = torch.tanh(embedding[tokens[rows, :-1]]) @ head
        return logits.log_softmax(-1).gather(2, tokens[rows, 1:, None])[..., 0]

    with torch.no_grad():
        shift = logprobs_of(range(num)) - inputs.logprobs

    def shifted(values: Tensor | None) -> Tensor:
        assert values is not None
        return (values + shift).to(dtype)

    batch = replace(
        inputs,
        old_logprobs=shifted(inputs.old_logprobs),
        ref_logprobs=shifted(inputs.ref_logprobs),
        rollout_logprobs=shifted(inputs.rollout_logprobs),
        advantages=inputs.advantages.to(dtype),
    )
    denominator = global_denominator(batch.loss_mask, config)
    total = 0.0
    for rows in parts:
        part = rows_of(batch, rows, denominator)
        part = replace(part, logprobs=logprobs_of(rows)[:, : part.loss_mask.shape[1]])
        loss = policy_loss(part, config).loss
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    assert embedding.grad is not None and head.grad is not None
    return torch.cat([embedding.grad.flatten(), head.grad.flatten()]), total
