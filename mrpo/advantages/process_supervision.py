"""Token advantages from normalised step rewards, in the manner of GRPO with process supervision (DeepSeekMath).

Letters: G completions of one prompt, T completion tokens, K steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from mrpo.advantages.credit import Credited, spread_returns
from mrpo.advantages.grpo import grpo_advantages


def process_supervision_advantages(
    group: Sequence[Credited], *, process_weight: float = 1.0, eps: float = 1e-4
) -> list[list[float]]:
    """A + w · Σ over the steps from the token's own on of r̃_j, r̃ = (r − mean(R)) / (std(R) + eps).

    Source: DeepSeekMath, arXiv 2402.03300, §4.1.3: the rewards R of all steps of all completions of a group are
    normalised together, and the advantage of a token is the sum of the normalised rewards of the steps that end at or
    after it: Â_{i,t} = Σ_{index(j) ≥ t} r̃_i^{index(j)}. A step's reward is 1 where it is valid, else 0.

    Our definition: the paper has no reward of the answer here; A, the group advantage of the other rewards, is added
    to every token, and tokens after the last step have A alone. Deviation and eps are those of `grpo`.

    Args:
        group: [G] completions of one prompt; those without verdicts keep A and are in no mean.
        process_weight: w.
        eps: added to the standard deviation.

    Returns:
        [G][T]; where fewer than two steps were judged, or all have one verdict, every token keeps A.
    """
    judged = [item for item in group if item.verdicts]
    rewards = [float(valid) for item in judged for valid in item.verdicts or ()]
    # The steps of the group are normalised as the completions of a group are.
    normalised = iter(grpo_advantages(torch.tensor(rewards, dtype=torch.float64), max(len(rewards), 1), eps).tolist())
    token_advantages: list[list[float]] = []
    for item in group:
        steps = [process_weight * next(normalised) for _ in item.verdicts or ()]
        returns = list(accumulate(reversed(steps)))[::-1]
        spread = spread_returns(returns, item.spans if steps else (), item.num_tokens)
        token_advantages.append([item.advantage + value for value in spread])
    return token_advantages
