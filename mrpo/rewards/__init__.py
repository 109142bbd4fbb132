"""Rewards of one completion (algorithm §2)."""

from mrpo.rewards.answer import AnswerReward, LocalScorer, build_answer_reward
from mrpo.rewards.components import process_reward, step_count_reward

__all__ = ["AnswerReward", "LocalScorer", "build_answer_reward", "process_reward", "step_count_reward"]
