"""When two answers are the same words: case, spacing, outer punctuation, articles and number words do not matter.

Number words that equal digits:
- cardinals up to 999,999: "two", "twenty-one", "one hundred and five", "a hundred", "two thousand";
- with a half: "two and a half" is 2.5;
- fractions after a number: "one half", "two-thirds", "three quarters" are 1/2, 2/3, 3/4;
- ordinals up to ninety-nine equal their short form, "second" and "2nd", and never the number itself.
Not covered: "half" alone, "once", "single", "pair", "dozen", Roman numerals ("grade II").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_CACHE_SIZE = 4096  # a gold answer is compared with every completion of its group

_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = (
    {"zero": 0, "a": 1}
    | {word: value for value, word in enumerate(_ONES, start=1)}
    | {word: value for value, word in enumerate(_TEENS, start=10)}
    | {word: 10 * value for value, word in enumerate(_TENS, start=2)}
)
_FIRST_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
)
_ORDINALS = {word: value for value, word in enumerate(_FIRST_ORDINALS.split(), start=1)} | {
    f"{word[:-1]}ieth": 10 * value for value, word in enumerate(_TENS, start=2)
}
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_PARTS |= {f"{part}s": value for part, value in _PARTS.items()} | {"halves": 2}


def _any(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(words)})"


_ONE, _TEN = _any(_ONES), _any(_TENS)
_BELOW_100 = rf"(?:{_TEN}(?:[- ]{_ONE})?|{_any(_TEENS)}|{_ONE})"
_BELOW_1000 = rf"(?:(?:{_ONE}|a)[- ]hundred(?:(?: and)? {_BELOW_100})?|{_BELOW_100})"
_CARDINAL = rf"(?:(?:{_BELOW_1000}|a)[- ]thousand(?:(?: and)? {_BELOW_1000})?|{_BELOW_1000}|zero)"
_ONE_PART = _any(part for part in _PARTS if not part.endswith("s"))
_MANY_PARTS = _any(part for part in _PARTS if part.endswith("s"))
# Case is ASCII's alone: regular expressions would take "ı" for "i", which is no letter of these words.
_NUMBER_WORDS = re.compile(
    rf"\b(?ai:(?P<count>one(?=[- ]{_ONE_PART}\b)|{_BELOW_100}(?=[- ]{_MANY_PARTS}\b))[- ](?P<part>{_any(_PARTS)})"
    rf"|(?:(?P<tens>{_TEN})[- ])?(?P<ordinal>{_any(_ORDINALS)})"
    rf"|(?P<cardinal>{_CARDINAL})(?P<half> and (?:a|one) half)?)\b"
)

# Signs with a meaning stay: "-2", "50%", "<5", "{" of LaTeX.
OUTER_PUNCTUATION = " \t\n.,;:!?\"'`*_…“”‘’«»()[]。，；：！？、"
_ARTICLES = frozenset(("the", "an"))
# "a" is an article only at the start or after one of these: "hepatitis A" and "type A influenza" keep theirs.
_BEFORE_ARTICLE = frozenset(
    ("is", "are", "was", "in", "on", "of", "with", "at", "as", "to", "for", "by", "from", "has", "have", "shows", "and")
)


@lru_cache(maxsize=_CACHE_SIZE)
def normalise_answer(text: str) -> str:
    """The form in which answers are compared: two answers are equal when their normal forms are.

    Lower case, NFKC, single spaces, no punctuation at the ends, no articles, number words as digits.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(OUTER_PUNCTUATION)
    words = with_digits(text).split()
    kept = [word for index, word in enumerate(words) if not _is_article(words, index)]
    return " ".join(kept).strip(OUTER_PUNCTUATION)


def with_digits(text: str) -> str:
    """The text with its number words as digits, and otherwise as it is."""
    return _NUMBER_WORDS.sub(_digits, text)


def _digits(match: re.Match[str]) -> str:
    found = {name: part.casefold() for name, part in match.groupdict().items() if part is not None}
    if "part" in found:
        return f"{_value(found['count'])}/{_PARTS[found['part']]}"
    if "ordinal" in found:
        return _short_ordinal(_VALUES[found["tens"]] if "tens" in found else 0, _ORDINALS[found["ordinal"]])
    return f"{_value(found['cardinal'])}{'.5' if 'half' in found else ''}"


def _value(cardinal: str) -> int:
    total = current = 0
    for word in re.split("[- ]", cardinal):
        if word == "hundred":
            current *= 100
        elif word == "thousand":
            total, current = 1000 * current, 0
        elif word != "and":
            current += _VALUES[word]
    return total + current


def _short_ordinal(tens: int, ordinal: int) -> str:
    """21st; of words that make no number ("twenty tenth") each on its own."""
    if tens and ordinal >= 10:
        return f"{tens} {_short_ordinal(0, ordinal)}"
    number = tens + ordinal
    suffix = "th" if number // 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def _is_article(words: list[str], index: int) -> bool:
    if index + 1 == len(words):
        return False  # an article stands before something
    word = words[index]
    return word in _ARTICLES or (word == "a" and (index == 0 or words[index - 1] in _BEFORE_ARTICLE))
