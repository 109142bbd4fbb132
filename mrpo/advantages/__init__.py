"""From rewards to one advantage per completion, and from verdicts to one per token (algorithm §3, §4)."""

from mrpo.advantages.dr_grpo import dr_grpo_advantages
from mrpo.advantages.gdpo import gdpo_advantages
from mrpo.advantages.grpo import grpo_advantages
from mrpo.advantages.process_supervision import process_supervision_advantages
from mrpo.advantages.pure import pure_advantages, pure_returns
from mrpo.advantages.registry import ADVANTAGES, SHAPINGS, advantage_function
from mrpo.advantages.rloo import rloo_advantages
from mrpo.advantages.step_shaping import shape_step_advantages, step_weights

__all__ = [
    "ADVANTAGES",
    "SHAPINGS",
    "advantage_function",
    "dr_grpo_advantages",
    "gdpo_advantages",
    "grpo_advantages",
    "process_supervision_advantages",
    "pure_advantages",
    "pure_returns",
    "rloo_advantages",
    "shape_step_advantages",
    "step_weights",
]
