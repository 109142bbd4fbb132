"""Learning rates."""

from __future__ import annotations

import pytest

from learner.schedule import scheduled_lr, sft_lr
from mrpo.config import LearnerConfig


def test_decay_is_linear_in_progress() -> None:
    learner = LearnerConfig(lr=1.0, lr_final_share=0.2)
    rates = [scheduled_lr(learner, num_steps=9, progress=progress) for progress in (0.0, 0.5, 1.0)]
    assert rates == pytest.approx([1.0, 0.6, 0.2])


def test_warm_up_reaches_the_decayed_rate_after_its_steps() -> None:
    learner = LearnerConfig(lr=1.0, warmup_steps=4)
    rates = [scheduled_lr(learner, num_steps=step, progress=0.0) for step in range(6)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_warm_start_rises_to_its_peak_and_falls_without_reaching_zero() -> None:
    rates = [sft_lr(step, num_steps=100, peak=2.0, warmup_share=0.05) for step in range(100)]
    assert max(rates) == 2.0 and rates.index(2.0) == 4
    assert rates[:5] == sorted(rates[:5]) and rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.0 < rates[-1] < 0.03


def test_a_warm_start_of_one_step_takes_it_at_the_peak() -> None:
    assert sft_lr(0, num_steps=1, peak=2.0, warmup_share=0.05) == 2.0
