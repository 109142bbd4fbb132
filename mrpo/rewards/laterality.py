"""Whether an answer names another side, height or direction than the gold answer, or the same ones swapped.

Lexical overlap would call "left lung" for "right lung" half right, and "left > right" for "right > left" wholly;
clinically it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from mrpo.rewards.normalise import OUTER_PUNCTUATION

# One row an axis: the words of its one end and of the other.
_AXES: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (frozenset(one.split()), frozenset(other.split()))
    for one, other in (
        (
            "left lt leftward leftwards leftmost leftsided lefthand sinister sinistra sinistrum",
            "right rt rightward rightwards rightmost rightsided righthand dexter dextra dextrum",
        ),
        ("upper top uppermost topmost", "lower bottom lowermost bottommost"),
        ("superior superiorly", "inferior inferiorly"),
        ("cranial cranially cephalad rostral", "caudal caudally caudad"),
        ("anterior anteriorly ventral ventrally", "posterior posteriorly dorsal dorsally"),
        ("medial medially", "lateral laterally"),
        ("proximal proximally", "distal distally"),
        ("ipsilateral ipsilaterally", "contralateral contralaterally"),
        ("unilateral unilaterally", "bilateral bilaterally"),
        ("levo laevo", "dextro"),
    )
)
_SIDES = _AXES[0]
_HEIGHTS = (1, 2, 3)  # rows that may stand for each other: "superior lobe" is not the lower one
_BOTH_SIDES = frozenset(("bilateral", "bilaterally"))
# Parts by their initials: side, then height.
_INITIALS = {
    f"{side[0]}{part}": (side, *height)
    for side in ("left", "right")
    for part, height in {
        "ul": ("upper",),
        "ll": ("lower",),
        "ml": (),
        "uq": ("upper",),
        "lq": ("lower",),
        "ue": ("upper",),
        "le": ("lower",),
        "v": (),  # ventricle
        "vh": (),
        "bbb": (),  # bundle branch block
        "ij": (),  # internal jugular
        "ca": (),  # coronary artery
        "cca": (),
        "ica": (),
    }.items()
}
_TOKEN = re.compile(r"[^\W\d_]+|[<>→]|\d+(?:[.,]\d+)*")
# Between parts that may change places: "left and right", "left lung clear, right lung hazy".
_JOINER = re.compile(
    r"[;:/&+()]|,(?!\d)|(?<!\blt)(?<!\brt)\.(?!\d)|\b(?:and|or|with|while|whereas|but|plus|vs|versus)\b"
)
# "Left smaller than right" puts the right first, as "right larger than left" does.
_REVERSING = frozenset(
    ("<", "smaller", "less", "lesser", "fewer", "narrower", "thinner", "shorter", "milder", "better")
)
_COMPARED_HEIGHT = re.compile(r"\blower than\b")  # a comparison, and not the lower of two parts
# Words that say nothing of the end they stand by.
_IDLE = _BOTH_SIDES.union(
    ("the", "a", "an", "in", "on", "of", "at", "to", "from"), ("is", "are", "there", "side", "sided", "both")
)
_CACHE_SIZE = 4096  # a gold answer is compared with every completion of its group
_CURVE = re.compile(r"\b(dextro|la?evo)(?=scolio|cardi|convex|rotat|posit|version|curv|transpos|loop)")
# Single letters are sides where nothing else is likely: "R lung", "(L)"; not "2 L", "mg/L", "L5", "L-spine", "R wave".
_LETTER = re.compile(
    r"(?<![\w.%/-])(?<!\d )(?P<side>[RL])(?:(?=\))|(?=[ -](?!(?:spine|wave|vertebra|type|cell|and|or)s?\b)[a-z]{3}))"
)
_BOTH_LETTERS = re.compile(r"(?<![\w.%/-])(?P<one>[RL]) ?(?P<between>/|&|\+|and|or|[<>→]) ?(?!(?P=one))[RL](?!\w)")
_EYE = re.compile(r"\b(?:OD|OS|OU)\b")  # in lower case they are other words
_LETTERS = {"r": "right", "l": "left", "od": "right", "os": "left", "ou": "left and right"}


def laterality_conflict(answer: str, gold: str) -> bool:
    """Whether on some axis both texts name ends, and not the same ones or not in the same places.

    "Bilateral" names left and right, so that it conflicts with either alone. A text that names no end conflicts with
    none. Of words for height that are not on one axis ("upper", "inferior"), the ones must contradict all the others.
    Where both texts name both ends:

    - of what names both in one breath, the order counts: "left larger than right", "from left to right";
    - of what is joined ("left and right", "left/right", commas) it does not, but what is said of the one end must not
      fit better what the other text says of the other: "left mass, right effusion", "right mass, left effusion";
    - "both sides, more on the left" conflicts with "both sides, more on the right".
    """
    ours, theirs = _named(answer), _named(gold)
    for row in range(len(_AXES)):
        mine, other = ours.ends[row], theirs.ends[row]
        if mine and other and mine != other:
            return True
        if len(mine) == len(other) == 2 and _swapped(ours.parts, theirs.parts, row):
            return True
    our_heights, their_heights = (
        frozenset[int]().union(*(text.ends[row] for row in _HEIGHTS)) for text in (ours, theirs)
    )
    return bool(our_heights and their_heights) and our_heights.isdisjoint(their_heights)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """What a text says of the axes."""

    ends: tuple[frozenset[int], ...]  # for every axis which of its two ends the text names
    parts: tuple[tuple[str, ...], ...]  # the text's words between its joiners


@lru_cache(maxsize=_CACHE_SIZE)
def _named(text: str) -> _Named:
    spelled = _CURVE.sub(r"\1 ", _spelled_sides(text).casefold())
    spelled = _COMPARED_HEIGHT.sub("less than", spelled)
    parts = tuple(tuple(_words(part)) for part in _JOINER.split(spelled))
    words = {word for part in parts for word in part}
    # "Both" speaks of sides only where none is named: "both margins of the left lobe" do not.
    if "both" in words and not words & (_SIDES[0] | _SIDES[1]):
        words.add("bilateral")
    if words & _BOTH_SIDES:
        words |= {"left", "right"}
    return _Named(ends=tuple(frozenset(end for end in (0, 1) if words & axis[end]) for axis in _AXES), parts=parts)


def _words(text: str) -> Iterator[str]:
    for word in _TOKEN.findall(text):
        yield from _INITIALS.get(word, (word,))


def _swapped(ours: tuple[tuple[str, ...], ...], theirs: tuple[tuple[str, ...], ...], row: int) -> bool:
    """Whether two texts of an axis' both ends give each end what the other text gives the other."""
    our_orders, our_said, our_named = _places(ours, row)
    their_orders, their_said, their_named = _places(theirs, row)
    if our_orders and their_orders:
        return our_orders.isdisjoint(their_orders)
    if len(our_named) == len(their_named) == 1:  # the other end is named by "bilateral" alone
        return our_named != their_named
    # "Left and right lung" says nothing of the left apart.
    straight = sum(len(our_said[end] & their_said[end]) for end in (0, 1))
    crossed = sum(len(our_said[end] & their_said[1 - end]) for end in (0, 1))
    return crossed > straight and all((*our_said, *their_said))


def _places(parts: tuple[tuple[str, ...], ...], row: int) -> tuple[set[int], list[set[str]], set[int]]:
    """Which end is first where a part names both, what the parts that name one say of it, and the ends that are named.

    Ends side by side ("left-right") are joined, and in no order.
    """
    orders: set[int] = set()
    said: list[set[str]] = [set(), set()]
    named: set[int] = set()
    for part in parts:
        marks = [(place, end) for place, word in enumerate(part) for end in (0, 1) if word in _AXES[row][end]]
        ends = {end for _, end in marks}
        named |= ends
        if len(ends) == 1:
            said[marks[0][1]].update(set(part) - _IDLE - _AXES[row][0] - _AXES[row][1])
        for (place, end), (next_place, next_end) in pairwise(marks):
            if end != next_end:
                if next_place - place > 1:
                    orders.add(end if _REVERSING.isdisjoint(part) else next_end)
                break
    return orders, said, named


def _spelled_sides(text: str) -> str:
    """The text with its sides by single letters, and by the initials of the eyes, in words."""
    text = " ".join(text.split())
    whole = text.strip(OUTER_PUNCTUATION).casefold().removeprefix("the ")
    if whole in _LETTERS:
        return _LETTERS[whole]
    if not text.isupper():
        text = _EYE.sub(_spelled, text)
    text = _BOTH_LETTERS.sub(_spelled_pair, text)
    return _LETTER.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    return _LETTERS[match[0].casefold()]


def _spelled_pair(match: re.Match[str]) -> str:
    one = _LETTERS[match["one"].casefold()]
    return f"{one} {match['between']} {'right' if one == 'left' else 'left'}"
