"""Kinds of questions, told from their words.

The rule, in this order:
1. "how many" or "number of": how_many;
2. the first word is an auxiliary verb ("is", "does", "is/are" …): which where it offers a choice ("or"), else yes_no;
3. the first question word decides: where, what, which; "how", "why", "when" and "who" are other;
4. no question word: other.
"""

from __future__ import annotations

import re
from enum import StrEnum


class QuestionKind(StrEnum):
    """What a question asks for."""

    YES_NO = "yes_no"
    WHAT = "what"
    WHERE = "where"
    WHICH = "which"
    HOW_MANY = "how_many"
    OTHER = "other"


AUXILIARIES = frozenset(
    (
        *("is", "are", "was", "were", "am", "isn't", "aren't", "do", "does", "did", "doesn't", "don't"),
        *("has", "have", "had", "can", "could", "will", "would", "should", "may", "might", "must"),
    )
)
DECIDING = {
    "where": QuestionKind.WHERE,
    "what": QuestionKind.WHAT,
    "which": QuestionKind.WHICH,
    **dict.fromkeys(("how", "why", "when", "who", "whose"), QuestionKind.OTHER),
}


def question_kind(question: str) -> QuestionKind:
    """The kind of a question, by the rule above."""
    words = re.findall(r"[a-z']+", question.lower().replace("’", "'"))
    text = " ".join(words)
    if "how many" in text or "number of" in text:
        return QuestionKind.HOW_MANY
    if words and words[0] in AUXILIARIES:
        return QuestionKind.WHICH if "or" in words else QuestionKind.YES_NO
    return next((DECIDING[word] for word in words if word in DECIDING), QuestionKind.OTHER)
