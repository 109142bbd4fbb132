"""Min-form credit assignment of PURE: a chain of steps is worth as much as its worst step.

Letters: G completions of one prompt, T completion tokens, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from mrpo.advantages.credit import Credited, spread_returns


def pure_returns(rewards: Sequence[float], temperature: float) -> list[float]:
    """What each step is followed by, itself included: the least reward, or its softmax-weighted form.

    Source: PURE, arXiv 2504.15275 (CJReinforce/PURE). With temperature 0 the return of step k is min_{j ≥ k} r_j.
    Otherwise the rewards of **all** steps are weighted, r*_j = softmax(−r/temperature)_j · r_j, and the return is
    Σ_{j ≥ k} r*_j, which for the first step tends to the least reward as the temperature falls.

    Args:
        rewards: [K].
        temperature: PURE trains with 0.1.

    Returns:
        [K].
    """
    if temperature == 0 or not rewards:
        return list(accumulate(reversed(rewards), min))[::-1]
    least = min(rewards)  # taken off, so that the largest exponent is 0
    exponentials = [math.exp((least - reward) / temperature) for reward in rewards]
    total = math.fsum(exponentials)
    weighted = [weight / total * reward for weight, reward in zip(exponentials, rewards, strict=True)]
    return list(accumulate(reversed(weighted)))[::-1]


def pure_advantages(
    group: Sequence[Credited], *, process_weight: float = 1.0, temperature: float = 0.1
) -> list[list[float]]:
    """A + w · (G_t − b): the min-form return of the token less what tokens of the other completions return on average.

    Source: PURE, arXiv 2504.15275 (CJReinforce/PURE): min-form returns of a process reward, less a baseline over the
    other completions of the group, beside RLOO of the verifiable reward, which A is under `advantage=rloo`. Its reward
    model gives p(right) − p(wrong) ∈ [−1, 1]; a verdict is that at its extremes: valid 1, invalid −1.

    Our definition: b_i = Σ_{l≠i} Σ_t G_{l,t} / Σ_{l≠i} T_l, over the tokens up to the last step. (The published verl
    code divides by the padded length, whitens, and takes its strict minimum over tokens with zeros between the steps;
    the OpenRLHF one subtracts a reward per token step by step.) A token between steps has the return of the next
    step; tokens after the last step have no return and no baseline, since no step follows them.

    Args:
        group: [G] completions of one prompt; those without verdicts keep A and are in no baseline.
        process_weight: w.
        temperature: see `pure_returns`.

    Returns:
        [G][T]; where no other completion has a judged step there is no baseline, and every token keeps A.
    """
    returns = [
        spread_returns(
            pure_returns([1.0 if valid else -1.0 for valid in item.verdicts], temperature),
            item.spans,
            item.spans[-1][1],
        )
        if item.verdicts
        else []
        for item in group
    ]
    sums = [math.fsum(values) for values in returns]
    num_others = [sum(map(len, returns)) - len(values) for values in returns]
    token_advantages: list[list[float]] = []
    for item, values, own, others in zip(group, returns, sums, num_others, strict=True):
        kept = [item.advantage] * item.num_tokens
        if values and others:
            baseline = (math.fsum(sums) - own) / others
            kept[: len(values)] = [item.advantage + process_weight * (value - baseline) for value in values]
        token_advantages.append(kept)
    return token_advantages
