"""Learning rates as pure functions of progress."""

from __future__ import annotations

from mrpo.config import LearnerConfig

WARM_START_WARMUP_SHARE = 0.05  # of a warm start's steps


def scheduled_lr(learner: LearnerConfig, *, num_steps: int, progress: float) -> float:
    """Linear warm-up over the first steps, linear decay over the run.

    Args:
        num_steps: optimizer steps done so far.
        progress: share of the run done, in [0, 1).
    """
    decay = 1.0 - progress * (1.0 - learner.lr_final_share)
    warmup = min(1.0, (num_steps + 1) / learner.warmup_steps) if learner.warmup_steps else 1.0
    return learner.lr * decay * warmup


def sft_lr(step: int, *, num_steps: int, peak: float, warmup_share: float) -> float:
    """Learning rate of supervised training: linear warm-up, then linear decay to 0 after the last step.

    Args:
        step: counted from 0.
        num_steps: of the whole training.
        peak: reached at the end of the warm-up.
        warmup_share: of the steps, at least one step.
    """
    warmup = max(1, round(warmup_share * num_steps))
    return peak * min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup + 1))
