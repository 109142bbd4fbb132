"""The parity gate: learner and engine must give the same log-probs for the same sampled tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mrpo.errors import ParityError
from mrpo.types import ScoreSample

NUM_WORST = 8  # tokens named in a failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityResult:
    """|Δ log-prob| between two models on the same tokens, nats."""

    mean_diff: float
    max_diff: float
    num_tokens: int
    worst: list[str]


def compare_logprobs(
    samples: Sequence[ScoreSample],
    learner_logprobs: Sequence[Sequence[float]],
    engine_logprobs: Sequence[Sequence[float]],
    *,
    token_text: Callable[[int], str] = str,
) -> ParityResult:
    """Compare raw log-probs token by token.

    Args:
        samples: what was scored.
        learner_logprobs: per sample [T], nats.
        engine_logprobs: per sample [T], nats.
        token_text: names a token id in the list of the worst.

    Raises:
        ParityError: nothing to compare, or lengths that differ.
    """
    rows: list[tuple[float, str]] = []
    for sample, ours, theirs in zip(samples, learner_logprobs, engine_logprobs, strict=True):
        if not len(ours) == len(theirs) == len(sample.completion_token_ids):
            raise ParityError(
                f"{sample.key}: {len(sample.completion_token_ids)} tokens, but the learner scored {len(ours)} "
                f"and the engine {len(theirs)}"
            )
        for position, (token, a, b) in enumerate(zip(sample.completion_token_ids, ours, theirs, strict=True)):
            name = f"{sample.key} token {position} {token_text(token)!r}: learner {a:.4f}, engine {b:.4f}"
            rows.append((abs(a - b), name))
    if not rows:
        raise ParityError("no completion tokens to compare; the engine returned empty completions")
    rows.sort(key=lambda row: math.inf if math.isnan(row[0]) else row[0], reverse=True)  # a NaN is the worst of all
    return ParityResult(
        mean_diff=sum(diff for diff, _ in rows) / len(rows),
        max_diff=rows[0][0],
        num_tokens=len(rows),
        worst=[name for _, name in rows[:NUM_WORST]],
    )


def require_parity(result: ParityResult, *, bound: float, setting: str) -> None:
    """Stop the run when the mean difference is above its bound (a NaN difference included).

    Raises:
        ParityError: names the bound's setting and the worst tokens.
    """
    if result.mean_diff <= bound:
        return
    worst = "\n  ".join(result.worst)
    raise ParityError(
        f"learner and engine disagree: mean |Δ log-prob| {result.mean_diff:.2e} over {result.num_tokens} tokens is "
        f"above {setting}={bound:g}. Same checkpoint, processor and dtype on both sides? Worst tokens:\n  {worst}"
    )
