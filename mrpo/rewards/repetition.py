"""How much a completion repeats itself. Measures that are logged, not rewards."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mrpo.rewards.normalise import normalise_answer

_LIST_MARK = re.compile(r"^(?:\(?\d+[.):]|[-*•])\s+")


def repeated_ngram_share(text: str, n: int = 4) -> float | None:
    """1 − distinct/all word n-grams, in [0, 1); None for a text of fewer than n words.

    Source: seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319), one minus distinct-n of Li et al. 2016
    (arXiv 1510.03055). Words are what white space separates, without regard to case.
    """
    words = text.casefold().split()
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else None


def repeated_step_share(steps: Sequence[str]) -> float | None:
    """Share of steps that say what an earlier one said, in [0, 1); None without steps.

    Steps are compared as answers are (`normalise_answer`), without the number or bullet of a list.

    Args:
        steps: [K] texts.
    """
    said = [normalise_answer(_LIST_MARK.sub("", step.strip())) for step in steps]
    return 1.0 - len(set(said)) / len(said) if said else None
