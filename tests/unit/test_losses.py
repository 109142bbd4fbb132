"""The policy loss against values by hand, finite differences and its invariances."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mrpo.choices import Aggregation, KLEstimator
from mrpo.errors import NonFiniteError, UserError
from mrpo.losses import LossConfig, LossInputs, global_denominator, policy_loss

NO_KL = LossConfig(beta=0.0)


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def one_token(ratio: float, advantage: float, *, rollout_logprobs: Tensor | None = None) -> LossInputs:
    return LossInputs(
        logprobs=tensor([math.log(ratio)]).requires_grad_(),
        old_logprobs=tensor([0.0]),
        advantages=tensor([advantage]),
        loss_mask=tensor([1.0]),
        rollout_logprobs=rollout_logprobs,
    )


def random_inputs(num: int = 6, length: int = 9, seed: int = 0) -> LossInputs:
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(num, length, generator=generator, dtype=torch.float64)

    logprobs = -noise(1.0).abs()
    lengths = torch.randint(1, length + 1, (num, 1), generator=generator)
    return LossInputs(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=logprobs.detach() + noise(0.3),
        advantages=noise(1.0),
        loss_mask=torch.arange(length).expand(num, length) < lengths,
        ref_logprobs=logprobs.detach() + noise(0.3),
        rollout_logprobs=logprobs.detach() + noise(0.5),
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.4, 0.0, 1),  # clipped at 1.2
        (0.5, 2.0, -1.0, -1.0, 0),
        (1.5, -2.0, 3.0, 3.0, 0),
        (0.5, -2.0, 1.6, 0.0, 1),  # clipped at 0.8
    ],
)
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float, gradient: float, clipped: int) -> None:
    inputs = one_token(ratio, advantage)
    outputs = policy_loss(inputs, NO_KL)
    outputs.loss.backward()  # type: ignore[no-untyped-call]
    assert outputs.loss.item() == pytest.approx(loss)
    assert inputs.logprobs.grad is not None
    assert inputs.logprobs.grad.item() == pytest.approx(gradient)
    assert outputs.clip_sum.item() == clipped
    assert outputs.ratio_max.item() == pytest.approx(ratio)


def test_clip_bounds_are_separate() -> None:
    config = replace(NO_KL, epsilon_high=0.28)
    assert policy_loss(one_token(1.5, 1.0), config).loss.item() == pytest.approx(-1.28)
    assert policy_loss(one_token(0.5, -1.0), config).loss.item() == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [(KLEstimator.K1, 0.5), (KLEstimator.K2, 0.125), (KLEstimator.K3, math.exp(-0.5) + 0.5 - 1)],
)
def test_kl_by_hand(estimator: KLEstimator, expected: float) -> None:
    inputs = replace(one_token(1.0, 0.0), ref_logprobs=tensor([-0.5]))
    outputs = policy_loss(inputs, LossConfig(beta=2.0, kl_estimator=estimator))
    assert outputs.kl_sum.item() == pytest.approx(expected)
    assert outputs.loss.item() == pytest.approx(2.0 * expected)


@pytest.mark.parametrize(
    ("rollout", "weight", "capped"), [(0.0, 1.0, 0), (math.log(0.8), 1.25, 0), (-5.0, 2.0, 1), (math.log(2.0), 0.5, 0)]
)
def test_off_policy_weight_is_capped(rollout: float, weight: float, capped: int) -> None:
    outputs = policy_loss(one_token(1.0, -3.0, rollout_logprobs=tensor([rollout])), NO_KL)
    assert outputs.loss.item() == pytest.approx(3.0 * weight)
    assert outputs.importance_clip_sum.item() == capped


def test_aggregations_by_hand() -> None:
    inputs = LossInputs(
        logprobs=torch.zeros(3, 4, dtype=torch.float64),
        old_logprobs=torch.zeros(3, 4, dtype=torch.float64),
        advantages=tensor([1.0, 2.0, 3.0, 99.0], [5.0, 99.0, 99.0, 99.0], [99.0] * 4),
        loss_mask=tensor([1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]),
    )
    losses = {
        kind: policy_loss(inputs, LossConfig(beta=0.0, aggregation=kind, constant_length=10)).loss.item()
        for kind in Aggregation
    }
    assert losses == pytest.approx(
        {
            Aggregation.SEQUENCE_MEAN: -(6.0 / 3 + 5.0) / 2,
            Aggregation.TOKEN_MEAN: -11.0 / 4,
            Aggregation.CONSTANT: -11.0 / 20,
        }
    )


@pytest.mark.parametrize("aggregation", list(Aggregation))
@pytest.mark.parametrize("estimator", list(KLEstimator))
def test_gradient_is_that_of_the_value(aggregation: Aggregation, estimator: KLEstimator) -> None:
    inputs = random_inputs()
    config = LossConfig(beta=0.1, aggregation=aggregation, kl_estimator=estimator)
    assert torch.autograd.gradcheck(
        lambda logprobs: policy_loss(replace(inputs, logprobs=logprobs), config).loss, (inputs.logprobs,)
    )


@pytest.mark.parametrize("aggregation", list(Aggregation))
@pytest.mark.parametrize("parts", [[[0, 1, 2], [3, 4, 5]], [[5], [4, 0], [1, 2, 3]], [[0], [1], [2], [3], [4], [5]]])
def test_splitting_a_batch_changes_nothing(aggregation: Aggregation, parts: list[list[int]]) -> None:
    config = LossConfig(beta=0.1, aggregation=aggregation)
    whole = random_inputs()
    expected = policy_loss(whole, config)
    (gradient,) = torch.autograd.grad(expected.loss, whole.logprobs)

    denominator = global_denominator(whole.loss_mask, config)
    outputs = [policy_loss(_rows(whole, rows, denominator), config) for rows in parts]
    (split_gradient,) = torch.autograd.grad(torch.stack([part.loss for part in outputs]).sum(), whole.logprobs)
    torch.testing.assert_close(split_gradient, gradient, rtol=1e-12, atol=1e-15)
    assert sum(part.loss.item() for part in outputs) == pytest.approx(expected.loss.item(), rel=1e-12)
    for name in ("num_tokens", "kl_sum", "clip_sum", "importance_clip_sum", "ratio_sum"):
        assert sum(getattr(part, name).item() for part in outputs) == pytest.approx(getattr(expected, name).item())
    assert max(part.ratio_max.item() for part in outputs) == expected.ratio_max.item()


def _rows(inputs: LossInputs, rows: list[int], denominator: float) -> LossInputs:
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


def test_denominators_of_parts_add_up() -> None:
    mask = random_inputs().loss_mask
    for aggregation in Aggregation:
        config = LossConfig(aggregation=aggregation)
        assert global_denominator(mask[:2], config) + global_denominator(mask[2:], config) == global_denominator(
            mask, config
        )


def test_on_policy_the_ratio_is_one_and_the_gradient_is_the_advantage() -> None:
    inputs = random_inputs()
    inputs = replace(inputs, old_logprobs=inputs.logprobs.detach(), rollout_logprobs=None)
    config = LossConfig(beta=0.0, aggregation=Aggregation.TOKEN_MEAN)
    outputs = policy_loss(inputs, config)
    (gradient,) = torch.autograd.grad(outputs.loss, inputs.logprobs)
    mask = inputs.loss_mask
    assert outputs.ratio_max.item() == 1.0
    assert outputs.ratio_sum.item() == outputs.num_tokens.item() == mask.sum().item()
    assert outputs.clip_sum.item() == 0
    torch.testing.assert_close(gradient, -(inputs.advantages * mask) / mask.sum())


def test_everything_but_the_log_probs_is_a_constant() -> None:
    inputs = random_inputs()
    config = LossConfig(beta=0.1)
    attached = replace(inputs, old_logprobs=inputs.logprobs, ref_logprobs=inputs.logprobs - 0.3)
    detached = replace(inputs, old_logprobs=inputs.logprobs.detach(), ref_logprobs=inputs.logprobs.detach() - 0.3)
    (one,) = torch.autograd.grad(policy_loss(attached, config).loss, inputs.logprobs)
    (other,) = torch.autograd.grad(policy_loss(detached, config).loss, inputs.logprobs)
    assert torch.equal(one, other)


@pytest.mark.parametrize("filler", [0.0, math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_masked_tokens_contribute_exactly_nothing(filler: float, aggregation: Aggregation) -> None:
    clean = random_inputs()
    mask = clean.loss_mask
    assert clean.ref_logprobs is not None
    assert clean.rollout_logprobs is not None
    dirty = LossInputs(
        logprobs=torch.where(mask, clean.logprobs.detach(), filler).requires_grad_(),
        old_logprobs=torch.where(mask, clean.old_logprobs, filler),
        advantages=torch.where(mask, clean.advantages, filler),
        loss_mask=mask,
        ref_logprobs=torch.where(mask, clean.ref_logprobs, filler),
        rollout_logprobs=torch.where(mask, clean.rollout_logprobs, filler),
    )
    config = LossConfig(beta=0.1, aggregation=aggregation)
    outputs = policy_loss(dirty, config)
    (gradient,) = torch.autograd.grad(outputs.loss, dirty.logprobs)
    assert outputs.loss.item() == policy_loss(clean, config).loss.item()
    assert (gradient[~mask] == 0).all()
    assert gradient.isfinite().all()


def test_a_batch_in_which_nothing_counts_has_zero_loss_and_gradient() -> None:
    inputs = random_inputs()
    inputs = replace(inputs, loss_mask=torch.zeros_like(inputs.loss_mask))
    outputs = policy_loss(inputs, LossConfig())
    (gradient,) = torch.autograd.grad(outputs.loss, inputs.logprobs)
    assert outputs.loss.item() == 0.0
    assert (gradient == 0).all()
    assert outputs.num_tokens.item() == 0


@pytest.mark.parametrize("field", ["logprobs", "old_logprobs", "advantages", "ref_logprobs", "rollout_logprobs"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_number_names_field_and_completion(field: str, value: float) -> None:
    inputs = random_inputs()
    spoiled = getattr(inputs, field).detach().clone()
    spoiled[3, 0] = value
    inputs = replace(inputs, **{field: spoiled}, keys=[f"q{row}#0" for row in range(6)])
    with pytest.raises(NonFiniteError, match=rf"^{field} of row 3 \(q3#0\) is {value} at token 0"):
        policy_loss(inputs, LossConfig())


def test_an_overflowing_ratio_is_an_error() -> None:
    inputs = replace(one_token(1.0, 1.0), old_logprobs=tensor([-1e4]))
    with pytest.raises(NonFiniteError, match="ratio of row 0 is inf"):
        policy_loss(inputs, NO_KL)


def test_bad_inputs_are_refused() -> None:
    inputs = random_inputs()
    with pytest.raises(UserError, match=r"beta=0\.04 needs ref_logprobs"):
        policy_loss(replace(inputs, ref_logprobs=None), LossConfig())
    with pytest.raises(UserError, match="positive denominator"):
        policy_loss(replace(inputs, denominator=0.0), LossConfig())
    with pytest.raises(UserError, match=r"advantages has shape \(6, 8\), expected \[B, T\] = \(6, 9\)"):
        policy_loss(replace(inputs, advantages=inputs.advantages[:, 1:]), LossConfig())
