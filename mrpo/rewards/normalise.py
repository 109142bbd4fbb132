"""When two answers are the same words: case, spacing, outer punctuation, articles and number words do not matter."""

from __future__ import annotations

import re
import unicodedata

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {word: value for value, word in enumerate(_ONES.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}
_NUMBER_WORD = re.compile(
    rf"\b(?:({'|'.join(_TENS.split())})[- ]({'|'.join(_ONES.split()[1:10])})|({'|'.join(_NUMBERS)}))\b"
)

# Signs with a meaning stay: "-2", "50%", "<5", "{" of LaTeX.
OUTER_PUNCTUATION = " \t\n.,;:!?\"'`*_…“”‘’«»()[]。，；：！？、"
_ARTICLES = frozenset(("the", "an"))
# "a" is an article only at the start or after one of these: "hepatitis A" and "type A influenza" keep theirs.
_BEFORE_ARTICLE = frozenset(
    ("is", "are", "was", "in", "on", "of", "with", "at", "as", "to", "for", "by", "from", "has", "have", "shows", "and")
)


def normalise_answer(text: str) -> str:
    """The form in which answers are compared: two answers are equal when their normal forms are.

    Lower case, NFKC, single spaces, no punctuation at the ends, no articles, number words up to ninety-nine as digits.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(OUTER_PUNCTUATION)
    text = _NUMBER_WORD.sub(_digits, text)
    words = text.split()
    kept = [word for index, word in enumerate(words) if not _is_article(words, index)]
    return " ".join(kept).strip(OUTER_PUNCTUATION)


def _digits(match: re.Match[str]) -> str:
    tens, ones, single = match.groups()
    return str(_NUMBERS[single] if single else _NUMBERS[tens] + _NUMBERS[ones])


def _is_article(words: list[str], index: int) -> bool:
    if index + 1 == len(words):
        return False  # an article stands before something
    word = words[index]
    return word in _ARTICLES or (word == "a" and (index == 0 or words[index - 1] in _BEFORE_ARTICLE))
