"""A weak judge that compares words and knows no medicine: enough for a smoke test on real data, never for a result.

A word here is a stem (Porter) outside `FUNCTION_WORDS`, with number words as digits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from mrpo.config import LexicalConfig
from mrpo.rewards.laterality import laterality_conflict
from mrpo.rewards.normalise import normalise_answer
from mrpo.rewards.symbolic import symbolically_equal
from mrpo.sentences import sentence_spans
from mrpo.types import Verdicts

# Negations are not among them: "no effusion" is another finding than "effusion".
_FUNCTION_WORDS = """
    about also an and any are as at be been being both but by can could did do does for from had has have he here
    how if in into is it its itself let may me might must my of on or our shall she should so some such than that
    the their them then there therefore these they this those thus to too us was we were what when where which while
    who why will with would you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
NEGATIONS = frozenset(("no", "not", "without", "none", "never", "neither", "nor", "absent"))
CACHED_WORDS = 65_536
_WORD = re.compile(r"[^\W_]+")


class LexicalJudge:
    """A `judge.local_app.Ruler` by word overlap."""

    def __init__(self, config: LexicalConfig) -> None:
        """`config`: the two thresholds."""
        from nltk.stem.porter import PorterStemmer  # seconds to import; of this process alone

        self._config = config
        self._stem = lru_cache(maxsize=CACHED_WORDS)(PorterStemmer().stem)

    def rule_steps(self, steps: Sequence[str], *, question: str, answer: str, rationale: str) -> Verdicts:
        """Mark every step.

        A step aligns when at least `min_step_overlap` of its words occur in the rationale, sentences left out that
        name another side or level than the step. It contributes when it shares a word with the gold answer and names
        no other side. A step without words, or with the same words as an earlier one, gets neither.
        """
        sentences = [rationale[begin:end] for begin, end in sentence_spans(rationale, 0, len(rationale))]
        gold = self._words(answer)
        seen: set[frozenset[str]] = set()
        alignment: list[bool] = []
        contribution: list[bool] = []
        for step in steps:
            words = self._words(step)
            counts = bool(words) and words not in seen
            seen.add(words)
            alignment.append(counts and self._overlap(step, words, sentences) >= self._config.min_step_overlap)
            contribution.append(counts and bool(words & gold) and not laterality_conflict(step, answer))
        return Verdicts(alignment=alignment, contribution=contribution)

    def rule_answer(self, generated: str, *, question: str, answer: str) -> bool:
        """Whether two answers are near enough.

        They are when they name no other side or level, and are equal after normalisation, equal as quantities, or have
        the same numbers and negations and a word F1 of at least `min_answer_f1`.
        """
        if laterality_conflict(generated, answer):
            return False
        if normalise_answer(generated) == normalise_answer(answer) or symbolically_equal(generated, answer):
            return True
        ours, theirs = self._words(generated), self._words(answer)
        if not ours or not theirs or _decisive(ours) != _decisive(theirs):
            return False
        return 2 * len(ours & theirs) / (len(ours) + len(theirs)) >= self._config.min_answer_f1

    def _overlap(self, step: str, words: frozenset[str], sentences: Sequence[str]) -> float:
        """Share of a step's words that the rationale's sentences without a conflict hold; `words` is not empty."""
        held: set[str] = set()
        for sentence in sentences:
            if not laterality_conflict(step, sentence):
                held |= self._words(sentence)
        return len(words & held) / len(words)

    def _words(self, text: str) -> frozenset[str]:
        found = _WORD.findall(normalise_answer(text))
        return frozenset(self._stem(word) for word in found if word not in FUNCTION_WORDS)


def _decisive(words: frozenset[str]) -> frozenset[str]:
    """Words of which one more or less changes the meaning, however much else is shared."""
    return frozenset(word for word in words if word in NEGATIONS or word.isdigit())
