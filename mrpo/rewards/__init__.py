"""Rewards of one completion (algorithm §2)."""

from mrpo.rewards.answer import AnswerReward, build_answer_reward
from mrpo.rewards.components import process_reward, step_count_reward
from mrpo.rewards.scorer import LocalScorer, build_answer_scorer

__all__ = [
    "AnswerReward",
    "LocalScorer",
    "build_answer_reward",
    "build_answer_scorer",
    "process_reward",
    "step_count_reward",
]
