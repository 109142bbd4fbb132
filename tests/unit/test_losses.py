"""The policy loss against values by hand, and what it refuses. Its gradient: `test_losses_gradients.py`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mrpo.choices import Aggregation, Importance, KLEstimator, Ratio
from mrpo.errors import NonFiniteError, UserError
from mrpo.losses import LossConfig, LossInputs, global_denominator, policy_loss
from tests.unit.loss_inputs import gradient, name_of, random_inputs, tensor, variants

NO_KL = LossConfig(beta=0.0)
MASKING = LossConfig(beta=0.0, importance=Importance.MASK)


def one_token(ratio: float, advantage: float, *, rollout_logprobs: Tensor | None = None) -> LossInputs:
    return LossInputs(
        logprobs=tensor([math.log(ratio)]).requires_grad_(),
        old_logprobs=tensor([0.0]),
        advantages=tensor([advantage]),
        loss_mask=tensor([1.0]),
        rollout_logprobs=rollout_logprobs,
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


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 1.0, -1.28, 1),
        (1.25, 1.0, -1.25, 0),  # above 1.2, and free
        (0.5, -1.0, 0.8, 1),
        (0.75, -1.0, 0.8, 1),  # below 0.8, and not
        (1.5, -1.0, 1.5, 0),
        (0.5, 1.0, -0.5, 0),
    ],
)
def test_clip_bounds_are_separate(ratio: float, advantage: float, loss: float, clipped: int) -> None:
    """DAPO's bounds: 0.2 below, 0.28 above."""
    outputs = policy_loss(one_token(ratio, advantage), replace(NO_KL, epsilon_high=0.28))
    assert outputs.loss.item() == pytest.approx(loss)
    assert outputs.clip_sum.item() == clipped


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
    ("raw", "truncated", "masked"),  # π_old/π_rollout, and what the loss is multiplied by
    [
        (1.0, 1.0, 1.0),
        (1.25, 1.25, 1.25),
        (1.99, 1.99, 1.99),
        (2.01, 2.0, 0.0),
        (150.0, 2.0, 0.0),
        (0.51, 0.51, 0.51),
        (0.49, 0.49, 0.0),
        (1e-3, 1e-3, 0.0),
    ],
)
def test_off_policy_weight_by_hand(raw: float, truncated: float, masked: float) -> None:
    inputs = one_token(1.0, -3.0, rollout_logprobs=tensor([-math.log(raw)]))
    for importance, weight in ((Importance.TRUNCATE, truncated), (Importance.MASK, masked), (Importance.NONE, 1.0)):
        config = replace(NO_KL, importance=importance)
        outputs = policy_loss(inputs, config)
        assert outputs.loss.item() == pytest.approx(3.0 * weight)
        assert gradient(inputs, config).item() == pytest.approx(3.0 * weight)
        assert outputs.importance_sum.item() == pytest.approx(weight)
        corrected = importance != Importance.NONE
        assert outputs.importance_clip_sum.item() == (corrected and weight != pytest.approx(raw))
        assert outputs.importance_diff_sum.item() == pytest.approx(abs(math.log(raw)) if corrected else 0.0)
        assert outputs.importance_diff_max.item() == outputs.importance_diff_sum.item()


def test_off_policy_weights_are_of_old_over_rollout_not_of_the_policy() -> None:
    """logp −1, old −1.1, rollout −1.3: ρ = exp(0.1), w = exp(0.2), each its own factor."""
    inputs = LossInputs(
        logprobs=tensor([-1.0]).requires_grad_(),
        old_logprobs=tensor([-1.1]),
        advantages=tensor([1.0]),
        loss_mask=tensor([1]),
        rollout_logprobs=tensor([-1.3]),
    )
    for ratio in Ratio:
        assert policy_loss(inputs, replace(NO_KL, ratio=ratio)).loss.item() == pytest.approx(-math.exp(0.3))


def test_a_token_that_icepop_masks_keeps_its_kl_and_its_place_in_the_denominator() -> None:
    """Weights 1 and 4 of two tokens: the first has its surrogate and KL, the second KL alone, and both are counted."""
    inputs = LossInputs(
        logprobs=tensor([-1.0, -1.0]).requires_grad_(),
        old_logprobs=tensor([-1.0, -1.0]),
        advantages=tensor([1.0, 5.0]),
        loss_mask=tensor([1, 1]),
        ref_logprobs=tensor([-1.5, -1.5]),
        rollout_logprobs=tensor([-1.0, -1.0 - math.log(4.0)]),
    )
    kl, kl_slope = math.exp(-0.5) + 0.5 - 1, 1 - math.exp(-0.5)
    config = replace(MASKING, beta=0.1)
    outputs = policy_loss(inputs, config)
    assert outputs.loss.item() == pytest.approx((-1.0 + 0.1 * kl + 0.1 * kl) / 2)
    torch.testing.assert_close(gradient(inputs, config), tensor([(-1 + 0.1 * kl_slope) / 2, 0.1 * kl_slope / 2]))
    assert gradient(inputs, replace(config, beta=0.0))[0, 1].item() == 0.0
    assert outputs.num_tokens.item() == 2


@pytest.mark.parametrize("importance", [Importance.TRUNCATE, Importance.MASK])
@pytest.mark.parametrize(("rollout", "raw"), [(-1e4, math.inf), (1e4, 0.0)])
def test_a_weight_beyond_all_numbers_is_bounded_and_reported(
    importance: Importance, rollout: float, raw: float
) -> None:
    inputs = one_token(1.0, -3.0, rollout_logprobs=tensor([rollout]))
    outputs = policy_loss(inputs, replace(NO_KL, importance=importance))
    expected = min(raw, 2.0) if importance == Importance.TRUNCATE else 0.0
    assert outputs.loss.item() == pytest.approx(3.0 * expected)
    assert outputs.importance_diff_max.item() == 1e4


def test_without_correction_the_samplers_log_probs_may_hold_anything() -> None:
    inputs = random_inputs()
    config = LossConfig(importance=Importance.NONE)
    expected = policy_loss(replace(inputs, rollout_logprobs=None), LossConfig())
    spoiled = replace(inputs, rollout_logprobs=torch.full((1, 1), math.nan))
    found = policy_loss(spoiled, config)
    assert found.loss.item() == expected.loss.item()
    assert found.importance_sum.item() == found.num_tokens.item()


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


def test_denominators_of_parts_add_up() -> None:
    mask = random_inputs().loss_mask
    for aggregation in Aggregation:
        config = LossConfig(aggregation=aggregation)
        assert global_denominator(mask[:2], config) + global_denominator(mask[2:], config) == global_denominator(
            mask, config
        )


@pytest.mark.parametrize("ratio", [Ratio.TOKEN, Ratio.SEQUENCE_TOKEN])
def test_on_policy_the_ratio_is_one_and_the_gradient_is_the_advantage(ratio: Ratio) -> None:
    inputs = random_inputs()
    inputs = replace(inputs, old_logprobs=inputs.logprobs.detach(), rollout_logprobs=None)
    config = LossConfig(beta=0.0, aggregation=Aggregation.TOKEN_MEAN, ratio=ratio)
    outputs = policy_loss(inputs, config)
    mask = inputs.loss_mask
    assert outputs.ratio_max.item() == 1.0
    assert outputs.ratio_sum.item() == outputs.num_tokens.item() == mask.sum().item()
    assert outputs.clip_sum.item() == 0
    torch.testing.assert_close(gradient(inputs, config), -(inputs.advantages * mask) / mask.sum())


def test_on_policy_gspo_gives_every_token_its_completions_mean_advantage() -> None:
    inputs = random_inputs()
    inputs = replace(inputs, old_logprobs=inputs.logprobs.detach(), rollout_logprobs=None)
    config = LossConfig(beta=0.0, ratio=Ratio.SEQUENCE)
    outputs = policy_loss(inputs, config)
    mask, lengths = inputs.loss_mask, inputs.loss_mask.sum(dim=1, keepdim=True)
    assert outputs.ratio_max.item() == 1.0
    assert outputs.ratio_sum.item() == mask.sum().item()
    mean = (inputs.advantages * mask).sum(dim=1, keepdim=True) / lengths
    torch.testing.assert_close(gradient(inputs, config), -mean * mask / lengths / len(mask))


@pytest.mark.parametrize("ratio", list(Ratio))
def test_everything_but_the_log_probs_is_a_constant(ratio: Ratio) -> None:
    inputs = random_inputs()
    config = LossConfig(beta=0.1, ratio=ratio)
    names = ("old_logprobs", "ref_logprobs", "rollout_logprobs")
    attached = {name: inputs.logprobs * (1.0 + 0.1 * number) for number, name in enumerate(names)}
    detached = {name: values.detach() for name, values in attached.items()}
    assert torch.equal(gradient(replace(inputs, **attached), config), gradient(replace(inputs, **detached), config))


@pytest.mark.parametrize("filler", [0.0, math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("config", variants(kl_estimator=KLEstimator.K3), ids=name_of)
def test_masked_tokens_contribute_exactly_nothing(filler: float, config: LossConfig) -> None:
    clean = random_inputs()
    mask = clean.loss_mask.clone()
    mask[4, 0] = mask[7] = False  # a hole, and a completion in which nothing counts
    clean = replace(clean, loss_mask=mask)

    def dirty(values: Tensor | None) -> Tensor:
        assert values is not None
        return torch.where(mask, values.detach(), filler)

    spoiled = LossInputs(
        logprobs=dirty(clean.logprobs).requires_grad_(),
        old_logprobs=dirty(clean.old_logprobs),
        advantages=dirty(clean.advantages),
        loss_mask=mask,
        ref_logprobs=dirty(clean.ref_logprobs),
        rollout_logprobs=dirty(clean.rollout_logprobs),
    )
    expected, found = policy_loss(clean, config), policy_loss(spoiled, config)
    assert all(getattr(found, name).item() == getattr(expected, name).item() for name in found.__slots__)
    result = gradient(spoiled, config)
    assert (result[~mask] == 0).all()
    assert torch.equal(result, gradient(clean, config))


def test_a_batch_in_which_nothing_counts_has_zero_loss_and_gradient() -> None:
    inputs = random_inputs()
    inputs = replace(inputs, loss_mask=torch.zeros_like(inputs.loss_mask))
    for ratio in Ratio:
        config = LossConfig(ratio=ratio)
        outputs = policy_loss(inputs, config)
        assert outputs.loss.item() == 0.0
        assert (gradient(inputs, config) == 0).all()
        assert outputs.num_tokens.item() == 0


@pytest.mark.parametrize("field", ["logprobs", "old_logprobs", "advantages", "ref_logprobs", "rollout_logprobs"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ratio", list(Ratio))
def test_a_bad_number_names_field_and_completion(field: str, value: float, ratio: Ratio) -> None:
    inputs = random_inputs()
    spoiled = getattr(inputs, field).detach().clone()
    spoiled[3, 0] = value
    inputs = replace(inputs, **{field: spoiled}, keys=[f"q{row}#0" for row in range(9)])
    with pytest.raises(NonFiniteError, match=rf"^{field} of row 3 \(q3#0\) is {value} at token 0"):
        policy_loss(inputs, LossConfig(ratio=ratio))


@pytest.mark.parametrize("ratio", list(Ratio))
def test_an_overflowing_ratio_is_an_error(ratio: Ratio) -> None:
    inputs = replace(one_token(1.0, 1.0), old_logprobs=tensor([-1e4]), keys=["q7#1"])
    with pytest.raises(NonFiniteError, match=r"ratio of row 0 \(q7#1\) is inf at token 0"):
        policy_loss(inputs, replace(NO_KL, ratio=ratio))


def test_an_overflowing_kl_is_an_error() -> None:
    inputs = replace(one_token(1.0, 1.0), ref_logprobs=tensor([1e4]), keys=["q7#1"])
    with pytest.raises(NonFiniteError, match=r"token loss of row 0 \(q7#1\) is inf at token 0"):
        policy_loss(inputs, LossConfig())


def test_bad_inputs_are_refused() -> None:
    inputs = random_inputs()
    with pytest.raises(UserError, match=r"beta=0\.04 needs ref_logprobs"):
        policy_loss(replace(inputs, ref_logprobs=None), LossConfig())
    with pytest.raises(UserError, match="positive denominator"):
        policy_loss(replace(inputs, denominator=0.0), LossConfig())
    with pytest.raises(UserError, match=r"advantages has shape \(9, 8\), expected \[B, T\] = \(9, 9\)"):
        policy_loss(replace(inputs, advantages=inputs.advantages[:, 1:]), LossConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": "sequence", "aggregation": "token_mean"}, "ratio=sequence .* got token_mean.* ratio=sequence_token"),
        ({"ratio": "sequence", "aggregation": "constant"}, "ratio=sequence .* got constant"),
        ({"importance": "mask", "importance_floor": 2.0}, "importance_floor=2 to importance_cap=2; the floor must be"),
        ({"importance": "mask", "importance_cap": 0.9}, r"importance_cap=0\.9; .* 1 \(no mismatch\)"),
        ({"importance": "mask", "importance_floor": 1.5}, r"importance_floor=1\.5 .* 1 \(no mismatch\)"),
        ({"importance": "trunc"}, "'none', 'truncate' or 'mask'"),
        ({"ratio": "sequences"}, "'token', 'sequence' or 'sequence_token'"),
        ({"epsilon_low": 1.5}, "less than or equal to 1"),
        ({"importance_cap": 0.0}, "greater than 0"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LossConfig(**settings)
