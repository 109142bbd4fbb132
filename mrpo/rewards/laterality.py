"""Whether an answer names another side, height or direction than the gold answer.

Lexical overlap would call "left lung" for "right lung" half right; clinically it is wrong.
"""

from __future__ import annotations

import re

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
_WORD = re.compile(r"[^\W\d_]+")
_CURVE = re.compile(r"\b(dextro|la?evo)(?=scolio|cardi|convex|rotat|posit|version|curv|transpos|loop)")
# Single letters are sides where nothing else is likely: "R lung", "(L)"; not "2 L", "mg/L", "L5", "L-spine", "R wave".
_LETTER = re.compile(
    r"(?<![\w.%/-])(?<!\d )(?P<side>[RL])(?:(?=\))|(?=[ -](?!(?:spine|wave|vertebra|type|cell|and|or)s?\b)[a-z]{3}))"
)
_BOTH_LETTERS = re.compile(r"(?<![\w.%/-])(?:R ?(?:/|&|\+|and|or) ?L|L ?(?:/|&|\+|and|or) ?R)(?!\w)")
_EYE = re.compile(r"\b(?:OD|OS|OU)\b")  # in lower case they are other words
_LETTERS = {"r": ("right",), "l": ("left",), "od": ("right",), "os": ("left",), "ou": ("left", "right")}


def laterality_conflict(answer: str, gold: str) -> bool:
    """Whether on some axis both texts name ends, and not the same ones.

    "Bilateral" names left and right, so that it conflicts with either alone. A text that names no end conflicts with
    none. Of words for height that are not on one axis ("upper", "inferior"), the ones must contradict all the others.
    """
    ours, theirs = _ends(answer), _ends(gold)
    if any(a and g and a != g for a, g in zip(ours, theirs, strict=True)):
        return True
    our_heights, their_heights = (frozenset[int]().union(*(ends[row] for row in _HEIGHTS)) for ends in (ours, theirs))
    return bool(our_heights and their_heights) and our_heights.isdisjoint(their_heights)


def _ends(text: str) -> list[frozenset[int]]:
    """For every axis which of its two ends the text names."""
    words = _letter_sides(text)
    text = text.casefold()
    for word in _WORD.findall(_CURVE.sub(r"\1 ", text)):
        words.update(_INITIALS.get(word, (word,)))
    # "Both" speaks of sides only where none is named: "both margins of the left lobe" do not.
    if "both" in words and not words & (_SIDES[0] | _SIDES[1]):
        words.add("bilateral")
    if words & _BOTH_SIDES:
        words |= {"left", "right"}
    return [frozenset(end for end in (0, 1) if words & axis[end]) for axis in _AXES]


def _letter_sides(text: str) -> set[str]:
    """Sides that a text names by single letters, or by the initials of the eyes."""
    text = " ".join(text.split())
    whole = text.strip(OUTER_PUNCTUATION).casefold().removeprefix("the ")
    if whole in _LETTERS:
        return set(_LETTERS[whole])
    found = [match["side"].casefold() for match in _LETTER.finditer(text)]
    if not text.isupper():
        found += [name.casefold() for name in _EYE.findall(text)]
    sides = {side for name in found for side in _LETTERS[name]}
    return sides | {"left", "right"} if _BOTH_LETTERS.search(text) else sides
