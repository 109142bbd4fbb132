r"""Whether two answers are the same quantity: math-verify compares the values, and the words have to agree as well.

math-verify takes the last number of any text and drops the rest, so "2 mm" equals "2 cm", "not 2" equals "2" and
"2 = 3" equals "3". It therefore sees only what was read as one number or one formula. Around a number:

- words that leave the quantity as it is ("about", "there are", "in total") do not matter on either side;
- what remains has to be the same, except that a number alone is the answer to "how many?", and equals the number of
  some thing that is counted: "2" is "2 lesions", and neither "2 cm", "grade 2" nor "less than 2";
- a comparison ("<5") equals only the same comparison;
- a percentage equals a percentage or the fraction ("50%" is "50 percent", "0.5" and "1/2"), never a whole number: not
  "50", nor "1" for "100%", as whole numbers are counts.

What is not on the lists below earns its overlap instead. math-verify's time limits need the main thread and are
switched off, so that whatever could take long is not handed to it in the first place.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from mrpo.rewards.normalise import normalise_answer

_LONGEST = 64  # characters of an answer that is still a quantity
_CACHE_SIZE = 4096  # a gold answer is compared with every completion of its group

_FILLERS = frozenset(
    (
        *("about", "approximately", "approx", "around", "roughly", "circa", "ca", "exactly", "only", "just"),
        *("there", "is", "are", "it", "answer", "total", "of", "seen", "visible", "present"),
    )
)
_FILLER_PHRASES = re.compile(r"\bin (?:total|all|number)\b")  # "in" alone is inches
_COUNTERS = frozenset(("separate", "distinct", "discrete", "different", "individual", "lymph"))
_COUNTED = frozenset(
    f"{thing}{ending}"
    for things, endings in (
        ("lesion nodule node tumor tumour cyst fracture infarct effusion aneurysm polyp ulcer", ("", "s")),
        ("stone clot thrombus thrombi plaque infiltrate consolidation hemorrhage haemorrhage", ("", "s")),
        ("lobe lung kidney rib lobule segment ventricle chamber valve vessel organ bone finger toe", ("", "s")),
        ("tooth teeth disc disk tube catheter drain lead line wire clip screw stent implant device", ("", "s")),
        ("object finding abnormality area region spot site image slice view scan cell patient person", ("", "s")),
        ("mass abscess", ("", "es")),
        ("metastas calcificat", ("is", "es", "ion", "ions")),
        ("foc", ("us", "i")),
        ("calcul", ("us", "i")),
        ("nucle", ("us", "i")),
        ("vertebra", ("", "e")),
        ("opacit cavit abnormalit", ("y", "ies")),
        ("people children eyes breasts", ("",)),
    )
    for thing in things.split()
    for ending in endings
)

_UPRIGHT = re.compile(r"\\(?:text|mathrm|boxed)\{([^{}]*)\}")
_REPEATED = re.compile(r"(?<![\w.,/])(\d+) \(\1(?:\)|$)")  # "two (2) lesions"
_PERCENT = re.compile(r"\\%|\bper ?cent\b")
_DIGITS = r"\d+(?:[.,]\d+)*"
_TERM = r"[^\W\d_](?:[^\W\d_]|['./-])*"
_NUMBER = re.compile(
    rf"(?P<before>(?:{_TERM} )*)(?P<sign>[<>≤≥]?) ?[~≈]? ?"
    rf"(?P<value>-?{_DIGITS}(?: ?/ ?{_DIGITS})?|-?\\[dt]?frac\{{{_DIGITS}\}}\{{{_DIGITS}\}})"
    rf" ?(?P<percent>%?)(?!(?:st|nd|rd|th)\b)(?P<after> ?°?(?:{_TERM}(?: {_TERM})*)?)"
)
_FORMULA = re.compile(r"[\d\s.,+*/^(){}-]*[\d)}]")  # its commands as the signs that they stand for
_OPERATOR = re.compile(r"\\(?:cdot|times)\b")
_ARGUMENT_TAKER = re.compile(r"\\(?:[dt]?frac|sqrt)(?=\{)")
# What is no formula, of which math-verify would still find some number.
_MALFORMED = re.compile(r"[-+*/^({]\s*[+*/^)}]|^[*/^)}]")
# Several quantities, a range, or a product without its sign.
_LISTED = re.compile(r"[;,:]\s|\d\s+\d|\d\s*[-–]\s*\d|\d\s*\(|\)\s*[\d(]")
_COSTLY = re.compile(r"!|\^\s*\{?\s*(?:\d{3,}|[^\d\s{-])|\^[^+\s]*\^|\*\*|\d{16,}")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?(?:/0*[1-9]\d*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantity:
    value: str  # for math-verify
    sign: str = ""
    is_percent: bool = False
    before: tuple[str, ...] = ()  # words that matter
    after: tuple[str, ...] = ()


def symbolically_equal(answer: str, gold: str) -> bool:
    """Whether both texts are one quantity of equal value, in words that mean the same as far as the module knows."""
    ours, theirs = _quantity(normalise_answer(answer)), _quantity(normalise_answer(gold))
    if ours is None or theirs is None or ours.sign != theirs.sign:
        return False
    if (ours.before, ours.after) != (theirs.before, theirs.after) and not (
        (_is_bare(ours) and _is_count(theirs)) or (_is_bare(theirs) and _is_count(ours))
    ):
        return False
    if ours.is_percent == theirs.is_percent:
        return _values_equal(ours.value, theirs.value)
    share, number = (ours, theirs) if ours.is_percent else (theirs, ours)
    is_fraction = any(mark in number.value for mark in "./\\")
    return is_fraction and _PLAIN.fullmatch(share.value) is not None and _values_equal(_hundredth(share), number.value)


@lru_cache(maxsize=_CACHE_SIZE)
def _quantity(text: str) -> _Quantity | None:
    """The text as one number in its words, or one formula without any, that is quick to evaluate; None if neither."""
    if len(text) > _LONGEST or _COSTLY.search(text):
        return None
    text = _UPRIGHT.sub(r" \1", text.replace("$", "").replace(r"\,", " ").replace("−", "-"))
    text = _FILLER_PHRASES.sub(" ", _REPEATED.sub(r"\1", _PERCENT.sub("%", text)))
    text = " ".join(text.split())
    if number := _NUMBER.fullmatch(text):
        return _Quantity(
            value=number["value"].replace(" ", ""),
            sign=number["sign"],
            is_percent=bool(number["percent"]),
            before=_matter(number["before"]),
            after=_matter(number["after"]),
        )
    return _Quantity(value=text) if _is_formula(text) else None


def _is_formula(text: str) -> bool:
    """Whether the text is a formula of numbers alone, and of nothing that would be slow."""
    signs = _ARGUMENT_TAKER.sub("", _OPERATOR.sub("*", text)).replace(r"\pi", "1")
    balanced = signs.count("(") == signs.count(")") and signs.count("{") == signs.count("}")
    return balanced and not (_LISTED.search(text) or _MALFORMED.search(signs)) and _FORMULA.fullmatch(signs) is not None


def _matter(words: str) -> tuple[str, ...]:
    stripped = (word.rstrip(".") for word in words.split())
    return tuple(word for word in stripped if word not in _FILLERS)


def _is_bare(quantity: _Quantity) -> bool:
    return not (quantity.before or quantity.after)


def _is_count(quantity: _Quantity) -> bool:
    """Whether it is a number of things that are counted, rather than of units that are measured."""
    if quantity.before or quantity.is_percent or not quantity.after:
        return False
    *counters, thing = quantity.after
    return thing in _COUNTED and _COUNTERS.issuperset(counters)


def _hundredth(quantity: _Quantity) -> str:
    return str(Fraction(quantity.value) / 100)


def _values_equal(ours: str, theirs: str) -> bool:
    from math_verify import parse, verify

    if ours == theirs:
        return True
    # It warns on every call that its time limits are off.
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    left, right = (parse(_delimited(value), parsing_timeout=None) for value in (ours, theirs))
    return bool(left and right and verify(right, left, timeout_seconds=None))


def _delimited(value: str) -> str:
    """A formula in the delimiters without which only its last number would be read."""
    return f"${value}$" if re.search(r"[\\+*^(]", value) else value
