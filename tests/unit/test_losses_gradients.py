"""The loss's gradient: finite differences, hand derivations, and that no split of a batch changes it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

from mrpo.choices import Aggregation, Importance, KLEstimator, Ratio
from mrpo.config import LossConfig
from mrpo.losses import LossInputs, LossOutputs, global_denominator, policy_loss
from tests.unit.loss_inputs import (
    gradient,
    model_gradient,
    name_of,
    random_inputs,
    relative_difference,
    rows_of,
    tensor,
    variants,
)

DIFFERENTIABLE = [config for config in variants() if config.ratio != Ratio.SEQUENCE_TOKEN]
# What a micro-batch's gradient depends on beyond its own tokens.
SPLITTABLE = variants(kl_estimator=KLEstimator.K3, importance=Importance.TRUNCATE)
NUM_PARTS = (1, 2, 3, 7)


def slow_ratios(inputs: LossInputs, ratio: Ratio) -> list[list[float]]:
    """One list a completion, over the tokens that count."""
    result = []
    for row, mask in enumerate(inputs.loss_mask.tolist()):
        deltas = (inputs.logprobs.detach() - inputs.old_logprobs)[row, : sum(mask)].tolist()
        if ratio != Ratio.TOKEN:
            deltas = [sum(deltas) / len(deltas)] * len(deltas)
        result.append([math.exp(delta) for delta in deltas])
    return result


def slow_surrogate_slopes(inputs: LossInputs, config: LossConfig) -> Tensor:
    """[B, T] of d min(ρA, clip(ρ)A) / d log ρ: A·ρ, and 0 where the clip decides."""
    slopes = torch.zeros_like(inputs.advantages)
    for row, ratios in enumerate(slow_ratios(inputs, config.ratio)):
        for token, ratio in enumerate(ratios):
            advantage = inputs.advantages[row, token].item()
            too_high = advantage > 0 and ratio > 1 + config.epsilon_high
            too_low = advantage < 0 and ratio < 1 - config.epsilon_low
            slopes[row, token] = 0.0 if too_high or too_low else advantage * ratio
    return slopes


@pytest.mark.parametrize("ratio", list(Ratio))
def test_the_random_batch_is_on_every_branch_and_off_every_kink(ratio: Ratio) -> None:
    """What the tests below rely on."""
    inputs, config = random_inputs(), LossConfig(ratio=ratio, importance=Importance.MASK)
    assert inputs.rollout_logprobs is not None
    mask = inputs.loss_mask
    found = torch.tensor([value for row in slow_ratios(inputs, ratio) for value in row])
    advantages, weights = inputs.advantages[mask], (inputs.old_logprobs - inputs.rollout_logprobs)[mask].exp()
    for side in (advantages > 0, advantages < 0):
        for band in (found > 1.2, found < 0.8, (found > 0.8) & (found < 1.2)):
            assert (side & band).any(), "both signs meet each branch of the clip"
    assert (weights < 0.5).any() and (weights > 2.0).any() and ((weights > 0.5) & (weights < 2.0)).any()
    assert min((found - kink).abs().min() for kink in (0.8, 1.2)) > 1e-3
    assert policy_loss(inputs, config).clip_sum > 0


@pytest.mark.parametrize("config", DIFFERENTIABLE, ids=name_of)
def test_gradient_is_that_of_the_value(config: LossConfig) -> None:
    inputs = random_inputs()
    assert torch.autograd.gradcheck(
        lambda logprobs: policy_loss(replace(inputs, logprobs=logprobs), config).loss, (inputs.logprobs,)
    )


@pytest.mark.parametrize("config", variants(ratio=Ratio.SEQUENCE_TOKEN), ids=name_of)
def test_gspo_token_gradient_by_hand(config: LossConfig) -> None:
    """d loss/d logp_t = (−w_t·A_t·s, or 0 where clipped, + β·d KL/d logp_t) over the aggregation's divisor.

    s is a constant but for the token's own log-prob, so that finite differences would find another gradient.
    """
    inputs = random_inputs()
    assert inputs.ref_logprobs is not None
    assert inputs.rollout_logprobs is not None
    mask = inputs.loss_mask
    lengths = mask.double().sum(dim=1, keepdim=True)
    divisor = {
        Aggregation.SEQUENCE_MEAN: lengths * len(mask),
        Aggregation.TOKEN_MEAN: lengths.sum(),
        Aggregation.CONSTANT: torch.tensor(len(mask) * config.constant_length),
    }[config.aggregation]
    raw = (inputs.old_logprobs - inputs.rollout_logprobs).exp()
    weight = {
        Importance.NONE: torch.ones_like(raw),
        Importance.TRUNCATE: raw.clamp(max=2.0),
        Importance.MASK: raw * ((raw >= 0.5) & (raw <= 2.0)),
    }[config.importance]
    delta = inputs.logprobs.detach() - inputs.ref_logprobs
    kl_slope = {
        KLEstimator.K1: torch.ones_like(delta),
        KLEstimator.K2: delta,
        KLEstimator.K3: 1.0 - torch.exp(-delta),
    }[config.kl_estimator]
    expected = mask * (-weight * slow_surrogate_slopes(inputs, config) + config.beta * kl_slope) / divisor
    torch.testing.assert_close(gradient(inputs, config), expected, rtol=1e-12, atol=1e-15)


def test_gspo_and_gspo_token_by_hand() -> None:
    """Two tokens, log-ratios 0.1 and 0.3: s = exp(0.2) = 1.2214, inside the clip of 0.3."""
    inputs = LossInputs(
        logprobs=tensor([-0.9, -0.7]).requires_grad_(),
        old_logprobs=tensor([-1.0, -1.0]),
        advantages=tensor([1.0, -2.0]),
        loss_mask=tensor([1, 1]),
    )
    config = LossConfig(ratio=Ratio.SEQUENCE, beta=0.0, epsilon_high=0.3)
    outputs = policy_loss(inputs, config)
    s = 1.221402758160170
    assert outputs.loss.item() == pytest.approx(0.5 * s)  # −(s·1 − s·2)/2
    assert outputs.ratio_max.item() == pytest.approx(s)
    torch.testing.assert_close(gradient(inputs, config), tensor([0.25 * s, 0.25 * s]))  # the mean advantage, −½, twice
    per_token = replace(config, ratio=Ratio.SEQUENCE_TOKEN)
    assert policy_loss(inputs, per_token).loss.item() == pytest.approx(0.5 * s)
    torch.testing.assert_close(gradient(inputs, per_token), tensor([-0.5 * s, s]))  # each token's own advantage


@pytest.mark.parametrize("ratio", [Ratio.SEQUENCE, Ratio.SEQUENCE_TOKEN])
def test_a_sequence_is_clipped_as_a_whole(ratio: Ratio) -> None:
    """exp(0.2) is above 1.2: with A > 0 no token gets a gradient, though the first is within its own clip."""
    inputs = LossInputs(
        logprobs=tensor([-0.9, -0.7], [-0.9, -0.7]).requires_grad_(),
        old_logprobs=tensor([-1.0, -1.0], [-1.0, -1.0]),
        advantages=tensor([1.0, 1.0], [-1.0, -1.0]),
        loss_mask=tensor([1, 1], [1, 1]),
    )
    config = LossConfig(ratio=ratio, beta=0.0)
    outputs = policy_loss(inputs, config)
    s = 1.221402758160170
    assert outputs.loss.item() == pytest.approx((-1.2 + s) / 2)
    assert outputs.clip_sum.item() == 2
    torch.testing.assert_close(gradient(inputs, config), tensor([0.0, 0.0], [s / 4, s / 4]))


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_in_completions_of_one_token_gspo_token_is_the_token_ratio(aggregation: Aggregation) -> None:
    inputs = random_inputs(num=30, length=1)
    config = LossConfig(aggregation=aggregation, ratio=Ratio.TOKEN)
    torch.testing.assert_close(
        gradient(inputs, replace(config, ratio=Ratio.SEQUENCE_TOKEN)), gradient(inputs, config), rtol=1e-14, atol=0
    )


def test_with_one_advantage_a_completion_gspo_token_is_gspo() -> None:
    inputs = random_inputs(num=30)
    inputs = replace(inputs, advantages=inputs.advantages[:, :1].expand_as(inputs.advantages))
    gspo = LossConfig(ratio=Ratio.SEQUENCE, importance=Importance.NONE)
    gspo_token = replace(gspo, ratio=Ratio.SEQUENCE_TOKEN)
    assert policy_loss(inputs, gspo_token).loss.item() == pytest.approx(policy_loss(inputs, gspo).loss.item(), 1e-14)
    torch.testing.assert_close(gradient(inputs, gspo_token), gradient(inputs, gspo), rtol=1e-12, atol=1e-16)
    assert not torch.allclose(gradient(inputs, gspo_token), gradient(inputs, replace(gspo, ratio=Ratio.TOKEN)))


def parts_of(num_parts: int, num: int = 9) -> list[list[int]]:
    """All completions in as many micro-batches, in another order."""
    order = torch.randperm(num, generator=torch.Generator().manual_seed(num_parts))
    return [part.tolist() for part in order.tensor_split(num_parts)]


@pytest.mark.parametrize("num_parts", NUM_PARTS)
@pytest.mark.parametrize("config", SPLITTABLE, ids=name_of)
def test_micro_batches_change_nothing(config: LossConfig, num_parts: int) -> None:
    """The parameters' gradient, in float64 and in float32, and every sum that is reported."""
    whole = [list(range(9))]
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        expected, loss = model_gradient(config, whole, dtype=dtype)
        found, split_loss = model_gradient(config, parts_of(num_parts), dtype=dtype)
        assert relative_difference(found, expected) < bound
        assert split_loss == pytest.approx(loss, rel=10 * bound)

    inputs = random_inputs()
    denominator = global_denominator(inputs.loss_mask, config)
    outputs = policy_loss(inputs, config)
    parts = [policy_loss(rows_of(inputs, rows, denominator), config) for rows in parts_of(num_parts)]
    for name in LossOutputs.__slots__:
        values, expected_value = [getattr(part, name).item() for part in parts], getattr(outputs, name).item()
        assert (max if name.endswith("_max") else sum)(values) == pytest.approx(expected_value, rel=1e-12)


def rank_gradients(rank: int, folder: str) -> None:
    """One of two ranks: its completions in two micro-batches, the gradients summed by Gloo. Rank 0 writes them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    gradients = []
    for config in SPLITTABLE:
        own = parts_of(4)[2 * rank : 2 * rank + 2]
        found, _ = model_gradient(config, own)
        dist.all_reduce(found)
        gradients.append(found)
    dist.destroy_process_group()
    if rank == 0:
        torch.save(gradients, f"{folder}/gradients.pt")


def test_ranks_change_nothing(tmp_path: Path) -> None:
    multiprocessing.spawn(rank_gradients, args=(str(tmp_path),), nprocs=2)
    for config, found in zip(SPLITTABLE, torch.load(tmp_path / "gradients.pt"), strict=True):
        expected, _ = model_gradient(config, [list(range(9))])
        assert relative_difference(found, expected) < 1e-13, name_of(config)
