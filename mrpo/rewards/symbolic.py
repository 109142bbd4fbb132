"""Whether two answers are the same quantity, by math-verify, kept away from what it would get wrong.

math-verify takes the last number of any text and drops the rest, so "2 mm" equals "2 cm", "grade 2" equals "stage 2"
and "2 to 3" equals "3". Here the words have to agree as well. Its time limits need the main thread and are switched
off, so that whatever could take long is not handed to it in the first place.
"""

from __future__ import annotations

import logging
import re

from mrpo.rewards.normalise import normalise_answer

_LONGEST = 64  # characters of an answer that is still a quantity
_MOST_WORDS = 3  # around a number whose counterpart stands alone: "about 2 lesions" for "2"
_COMMANDS = frozenset(
    (
        r"\frac",
        r"\dfrac",
        r"\tfrac",
        r"\sqrt",
        r"\cdot",
        r"\times",
        r"\text",
        r"\mathrm",
        r"\pi",
        r"\%",
        r"\boxed",
        r"\,",
    )
)
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|.)")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*|[µ°]")
_CODE = re.compile(r"[^\W\d_]-?\d|\d[^\W\d_]\d|\d(?:st|nd|rd|th)\b")  # T2, L4-5, 2nd: names, not quantities
_COSTLY = re.compile(r"!|\^\s*\{?\s*(?:\d{3,}|[^\d\s{-])|\^[^+\s]*\^|\*\*|\d{16,}")
_LISTED = re.compile(r"[;,:]\s|\d\s+\d|\d\s*[-–]\s*\d|±")  # several quantities, or a range


def symbolically_equal(answer: str, gold: str) -> bool:
    """Whether both texts are one quantity of equal value, in the same words where both have any."""
    ours, theirs = normalise_answer(answer), normalise_answer(gold)
    if not (_is_quantity(ours) and _is_quantity(theirs)):
        return False
    our_words, their_words = _words(ours), _words(theirs)
    if our_words or their_words:
        one_number_each = len(_NUMBER.findall(ours)) == len(_NUMBER.findall(theirs)) == 1
        one_is_bare = not (our_words and their_words) and len(our_words | their_words) <= _MOST_WORDS
        if not ((one_is_bare and one_number_each) or our_words == their_words):
            return False
    return _values_equal(ours, theirs)


def _is_quantity(text: str) -> bool:
    """Whether the text may be one number or formula that is quick to evaluate."""
    if len(text) > _LONGEST or not _NUMBER.search(text) or _COSTLY.search(text):
        return False
    if any(command not in _COMMANDS for command in _COMMAND.findall(text)):
        return False
    plain = _COMMAND.sub(" ", text)
    numbers = _NUMBER.findall(text)
    # Beside words, several numbers are a range, a size or a list, of which math-verify would take the last.
    many_with_words = len(numbers) > 1 and "\\" not in text and "/" not in text and bool(_words(text))
    return not (_CODE.search(plain) or _LISTED.search(plain) or many_with_words)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(_COMMAND.sub(" ", text)))


def _values_equal(ours: str, theirs: str) -> bool:
    from math_verify import parse, verify

    # It warns on every call that its time limits are off.
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    left, right = parse(ours, parsing_timeout=None), parse(theirs, parsing_timeout=None)
    return bool(left and right and verify(right, left, timeout_seconds=None))
