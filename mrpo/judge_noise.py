"""Verdicts made wrong on purpose, to see how good a judge has to be (algorithm §7). Pure.

Letters: N completions, K steps of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mrpo.scoring import Trace
from mrpo.types import Verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyTraces:
    """Completions with the verdicts that training goes by. Read by the controller."""

    traces: list[Trace]  # [N] in the order given
    flipped_share: float | None  # of all verdicts; None: no noise was asked for, or nothing was judged

    def metrics(self) -> dict[str, float]:
        """What was flipped; nothing where nothing could be."""
        return {} if self.flipped_share is None else {"judge/flipped_share": self.flipped_share}


def add_judge_noise(traces: Sequence[Trace], *, probability: float, seed: int, step: int) -> NoisyTraces:
    """Flip each verdict with the same probability, whatever the step says.

    A valid step becomes one that neither aligns nor contributes, an invalid one both aligns and contributes: between
    the two rulings there is no third one for validity. Failed judgements stay failures. A flip follows from the
    arguments alone, so that a resumed run repeats it, and what is flipped at one probability is flipped at every larger
    one.

    Args:
        traces: [N] of one training step; an evaluation gets no noise.
        probability: `judge.noise`, in [0, 1]; 0 gives the traces back as they are.
        seed: of the run.
        step: counts from 0.
    """
    if probability == 0:
        return NoisyTraces(traces=list(traces), flipped_share=None)
    noisy: list[Trace] = []
    num_verdicts = num_flipped = 0
    for trace in traces:
        judgement = trace.judgement
        if judgement is None or not isinstance(judgement.outcome, Verdicts):
            noisy.append(trace)
            continue
        outcome, flips = flip_verdicts(
            judgement.outcome, probability=probability, seed=seed, step=step, key=trace.completion.key
        )
        num_verdicts += len(flips)
        num_flipped += sum(flips)
        noisy.append(replace(trace, judgement=replace(judgement, outcome=outcome)))
    return NoisyTraces(traces=noisy, flipped_share=num_flipped / num_verdicts if num_verdicts else None)


def flip_verdicts(
    verdicts: Verdicts, *, probability: float, seed: int, step: int, key: str
) -> tuple[Verdicts, list[bool]]:
    """The verdicts of one completion with their flips, and [K] which of them flipped; arguments as `add_judge_noise`.

    `key`: of the completion, or of the asking: the flips follow from it.
    """
    flips = [_draw(seed, step, key, index) < probability for index in range(len(verdicts.valid))]
    return _flip(verdicts, flips), flips


def _flip(verdicts: Verdicts, flips: Sequence[bool]) -> Verdicts:
    """[K] the opposite validity where `flips` is true; what is not flipped keeps both of its rulings."""
    opposite = [not valid for valid in verdicts.valid]
    return Verdicts(
        alignment=[new if flip else old for flip, new, old in zip(flips, opposite, verdicts.alignment, strict=True)],
        contribution=[
            new if flip else old for flip, new, old in zip(flips, opposite, verdicts.contribution, strict=True)
        ],
    )


def _draw(seed: int, step: int, key: str, index: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments; 53 bits, so that it is exact as a float."""
    digest = hashlib.sha256(f"judge noise/{seed}/{step}/{key}/{index}".encode()).digest()
    return float((int.from_bytes(digest[:8], "big") >> 11) / 2**53)
