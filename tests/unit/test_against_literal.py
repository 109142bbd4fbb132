"""The algorithms against a second, literal implementation on random batches.

Letters: N completions, G group size, R reward components, T completion tokens, K steps, B completions of a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mrpo.advantages import (
    advantage_function,
    dr_grpo_advantages,
    gdpo_advantages,
    grpo_advantages,
    process_supervision_advantages,
    pure_advantages,
    pure_returns,
    rloo_advantages,
    shape_step_advantages,
)
from mrpo.advantages.credit import Credited
from mrpo.choices import Aggregation, Importance, KLEstimator, Ratio
from mrpo.losses import LossConfig, LossInputs, global_denominator, policy_loss
from tests.unit import literal

NUM_BATCHES = 1000
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
BASES = (1.0, 0.5, 2.0, math.e, 10.0)

Rng = np.random.Generator


def batches(num: int = NUM_BATCHES) -> Iterator[Rng]:
    for seed in range(num):
        yield np.random.default_rng(seed)


def pick(rng: Rng, *options: Any) -> Any:
    return options[rng.integers(len(options))]


def random_rewards(rng: Rng, num_groups: int, group_size: int, size: float) -> np.ndarray:
    """[N] of one reward component: any numbers, or of two values, or off zero; constant in some groups."""
    rewards = size * rng.normal(size=(num_groups, group_size))
    if rng.random() < 0.4:
        rewards = rng.integers(2, size=rewards.shape).astype(float)
    if rng.random() < 0.3:
        rewards += 10.0 * size * rng.normal()
    constant = rng.random(num_groups) < 0.2
    rewards[constant] = rewards[constant, :1]
    return rewards.flatten()


def random_valid(rng: Rng, num: int) -> list[bool]:
    return (rng.random(num) < pick(rng, 1.0, 0.8, 0.3)).tolist()


def test_group_advantages() -> None:
    num_left_out = num_constant = 0
    for rng in batches():
        group_size, num_groups, num_components = (int(rng.integers(*bounds)) for bounds in ((2, 9), (1, 6), (1, 4)))
        size = 10.0 ** rng.integers(-6, 5)  # one for all: sums of very small and very large numbers mean nothing
        columns = [random_rewards(rng, num_groups, group_size, size) for _ in range(num_components)]
        components = np.stack(columns, axis=1)
        weights = np.round(rng.random(num_components) * 2, 1)
        valid = random_valid(rng, len(components))
        eps = 10.0 ** -rng.integers(2, 7)
        totals = [math.fsum(row * weights) for row in components]
        expected = {
            "grpo": literal.grpo(totals, group_size, eps, valid),
            "gdpo": literal.gdpo(components.tolist(), weights.tolist(), group_size, eps, valid),
            "dr_grpo": literal.dr_grpo(totals, group_size, valid),
            "rloo": literal.rloo(totals, group_size, valid),
        }
        components[~np.array(valid)] = pick(rng, math.nan, math.inf, 7.0)  # must not be looked at
        totals = [total if keep else math.nan for total, keep in zip(totals, valid, strict=True)]
        got = {
            "grpo": grpo_advantages(totals, group_size, eps, valid),
            "gdpo": gdpo_advantages(components.tolist(), weights.tolist(), group_size, eps, valid),
            "dr_grpo": dr_grpo_advantages(totals, group_size, valid),
            "rloo": rloo_advantages(totals, group_size, valid),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(got[name].numpy(), values, **CLOSE, err_msg=name)
            by_name = advantage_function(name)(components.tolist(), weights.tolist(), group_size, eps, valid)
            np.testing.assert_allclose(by_name.numpy(), values, **CLOSE, err_msg=name)
            assert by_name[~torch.tensor(valid)].eq(0).all()
        num_left_out += not all(valid)
        num_constant += expected["grpo"].count(0.0) > valid.count(False)
    assert min(num_left_out, num_constant) > NUM_BATCHES // 10  # the draw has what it is there to test


def random_spans(rng: Rng, num_steps: int) -> tuple[list[tuple[int, int]], int]:
    """Steps with gaps and without, some without a token, and how many tokens the completion has."""
    bounds = np.cumsum(rng.integers(0, 4, size=2 * num_steps)).tolist()
    spans = [(bounds[2 * k], bounds[2 * k + 1]) for k in range(num_steps)]
    return spans, (bounds[-1] if bounds else 0) + int(rng.integers(0, 4))


def random_verdicts(rng: Rng, num_steps: int) -> list[bool] | None:
    return pick(
        rng,
        None,
        [True] * num_steps,
        [False] * num_steps,
        (rng.random(num_steps) < 0.5).tolist(),
        (rng.random(num_steps) < 0.9).tolist(),
    )


def test_step_shaping() -> None:
    num_shaped = num_at_threshold = 0
    for rng in batches():
        for _ in range(int(rng.integers(2, 9))):
            num_steps = int(rng.integers(0, 13))
            spans, num_tokens = random_spans(rng, num_steps)
            threshold = pick(rng, 0.6, 0.4, 0.8, 0.0, 1.0)
            near = (threshold, np.nextafter(threshold, 2.0), np.nextafter(threshold, -1.0), 0.0, 1.0, rng.random())
            answer_reward = pick(rng, *near)
            advantage = pick(rng, rng.normal(), 0.0, -0.0, 1e8 * rng.normal(), 1e-12 * rng.normal())
            base = pick(rng, *BASES)
            schedule = pick(rng, "exponential", "linear", "reversed", "none")
            verdicts = random_verdicts(rng, num_steps)
            expected = literal.shaped(advantage, verdicts, spans, num_tokens, answer_reward, threshold, base, schedule)
            got = shape_step_advantages(
                advantage,
                verdicts,
                spans,
                num_tokens,
                answer_reward,
                threshold=threshold,
                base=base,
                schedule=schedule,
            )
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=0.0)
            assert [math.copysign(1.0, value) for value in got] == [math.copysign(1.0, value) for value in expected]
            num_shaped += len(set(got)) > 1
            num_at_threshold += answer_reward == threshold
    assert min(num_shaped, num_at_threshold) > NUM_BATCHES // 2


def random_group(rng: Rng) -> list[Credited]:
    group = []
    for _ in range(int(rng.integers(1, 9))):
        num_steps = int(rng.integers(0, 13))
        spans, num_tokens = random_spans(rng, num_steps)
        group.append(
            Credited(
                advantage=float(pick(rng, rng.normal(), 0.0)),
                verdicts=random_verdicts(rng, num_steps),
                spans=spans,
                num_tokens=num_tokens,
                answer_reward=rng.random(),
            )
        )
    return group


def assert_rows_close(got: list[list[float]], expected: list[list[float]]) -> None:
    assert [len(row) for row in got] == [len(row) for row in expected]
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(expected), **CLOSE)


def test_step_credit() -> None:
    num_credited = 0
    for rng in batches():
        group = random_group(rng)
        same = [
            literal.Judged(
                advantage=item.advantage, verdicts=item.verdicts, spans=item.spans, num_tokens=item.num_tokens
            )
            for item in group
        ]
        process_weight = pick(rng, 1.0, 0.0, 0.3, 5.0)
        temperature = pick(rng, 0.0, 0.1, 1.0, 1e-3)
        eps = 10.0 ** -rng.integers(2, 7)
        expected = literal.min_form_credit(same, process_weight, temperature)
        got = pure_advantages(group, process_weight=process_weight, temperature=temperature)
        assert_rows_close(got, expected)
        num_credited += any(len(set(row)) > 1 for row in got)
        expected = literal.process_supervision(same, process_weight, eps)
        got = process_supervision_advantages(group, process_weight=process_weight, eps=eps)
        assert_rows_close(got, expected)
        rewards = rng.normal(size=rng.integers(0, 13)).tolist()  # any numbers, not only verdicts
        returns = literal.min_form_returns(rewards, temperature)
        np.testing.assert_allclose(pure_returns(rewards, temperature), returns, **CLOSE)
    assert num_credited > NUM_BATCHES // 2


def random_settings(rng: Rng) -> tuple[LossConfig, literal.LossSettings]:
    ratio = pick(rng, *Ratio)
    aggregations = (Aggregation.SEQUENCE_MEAN,) if ratio == Ratio.SEQUENCE else tuple(Aggregation)
    floor, cap = pick(rng, (0.5, 2.0), (0.0, 5.0), (1.0, 1.25), (0.5, 1.0))  # many weights are exactly 1
    config = LossConfig(
        ratio=ratio,
        epsilon_low=pick(rng, 0.2, 0.0, 0.05),
        epsilon_high=pick(rng, 0.2, 0.28, 0.0, 3.0),
        beta=pick(rng, 0.04, 0.0, 2.0),
        kl_estimator=pick(rng, *KLEstimator),
        aggregation=pick(rng, *aggregations),
        constant_length=pick(rng, 1, 7, 512),
        importance=pick(rng, *Importance),
        importance_cap=cap,
        importance_floor=floor,
    )
    settings = literal.LossSettings(
        ratio=str(config.ratio),
        epsilon_low=config.epsilon_low,
        epsilon_high=config.epsilon_high,
        beta=config.beta,
        estimator=str(config.kl_estimator),
        aggregation=str(config.aggregation),
        constant_length=config.constant_length,
        importance=str(config.importance),
        cap=config.importance_cap,
        floor=config.importance_floor,
    )
    return config, settings


def test_policy_loss_and_its_gradient() -> None:
    num_clipped = num_weighted = 0
    for rng in batches():
        config, settings = random_settings(rng)
        shape = (int(rng.integers(1, 9)), int(rng.integers(1, 25)))
        logp = -np.abs(rng.normal(size=shape)) * pick(rng, 1.0, 5.0)
        old = logp + rng.normal(size=shape) * pick(rng, 0.0, 0.1, 1.0)
        ref = logp + rng.normal(size=shape) * pick(rng, 0.0, 0.3, 2.0)
        rollout = old + rng.normal(size=shape) * (rng.random(shape) < 0.7) * pick(rng, 0.02, 0.5, 2.0)
        advantages = rng.normal(size=shape) * pick(rng, 1.0, 1e4, 0.0)
        mask = pick(
            rng,
            np.arange(shape[1]) < rng.integers(0, shape[1] + 1, size=(shape[0], 1)),
            rng.random(shape) < 0.7,
            np.ones(shape, dtype=bool),
        )
        for values in (logp, old, ref, rollout, advantages):
            values[~mask] = pick(rng, math.nan, math.inf, -math.inf, 1e30)  # must not be looked at
        has_rollout = rng.random() < 0.7
        total = literal.denominator(mask.tolist(), settings)
        assert global_denominator(torch.from_numpy(mask), config) == total

        loss, gradient = literal.policy_loss(
            logp.tolist(),
            old.tolist(),
            advantages.tolist(),
            mask.tolist(),
            ref.tolist(),
            rollout.tolist() if has_rollout else None,
            total,
            settings,
        )
        logprobs = torch.tensor(logp, requires_grad=True)
        cut = int(rng.integers(0, shape[0] + 1))
        outputs = [
            policy_loss(
                LossInputs(
                    logprobs=logprobs[rows],
                    old_logprobs=torch.tensor(old)[rows],
                    advantages=torch.tensor(advantages)[rows],
                    loss_mask=torch.tensor(mask, dtype=pick(rng, torch.bool, torch.float64))[rows],
                    ref_logprobs=torch.tensor(ref)[rows] if config.beta > 0 else None,
                    rollout_logprobs=torch.tensor(rollout)[rows] if has_rollout else None,
                    denominator=total,
                ),
                config,
            )
            for rows in (slice(cut), slice(cut, None))
        ]
        got = outputs[0].loss + outputs[1].loss
        got.backward()
        size = max(1.0, float(np.abs(np.where(mask, advantages, 0.0)).max()))
        assert got.item() == pytest.approx(loss, rel=1e-9, abs=1e-9 * size)
        assert logprobs.grad is not None
        np.testing.assert_allclose(logprobs.grad.numpy(), gradient, rtol=1e-9, atol=1e-9 * size)
        assert not logprobs.grad[~torch.from_numpy(mask)].any()
        num_clipped += sum(int(output.clip_sum) for output in outputs) > 0
        num_weighted += sum(int(output.importance_clip_sum) for output in outputs) > 0
    assert min(num_clipped, num_weighted) > NUM_BATCHES // 10
