"""Whether an answer names another side, height or direction than the gold answer.

Lexical overlap would call "left lung" for "right lung" half right; clinically it is wrong.
"""

from __future__ import annotations

import re

# One row an axis: the words of its one end and of the other.
_AXES: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (frozenset(one.split()), frozenset(other.split()))
    for one, other in (
        ("left lt leftward leftwards", "right rt rightward rightwards"),
        ("upper top uppermost", "lower bottom lowermost"),
        ("superior superiorly", "inferior inferiorly"),
        ("anterior anteriorly ventral", "posterior posteriorly dorsal"),
        ("medial medially", "lateral laterally"),
        ("proximal proximally", "distal distally"),
        ("cranial cephalad rostral", "caudal caudad"),
        ("ipsilateral", "contralateral"),
    )
)
_BOTH_SIDES = frozenset(("bilateral", "bilaterally"))
# Lobes and quadrants by their initials: side, then height.
_INITIALS = {
    "lul": ("left", "upper"),
    "lll": ("left", "lower"),
    "rul": ("right", "upper"),
    "rll": ("right", "lower"),
    "rml": ("right",),
    "luq": ("left", "upper"),
    "llq": ("left", "lower"),
    "ruq": ("right", "upper"),
    "rlq": ("right", "lower"),
}
_WORD = re.compile(r"[^\W\d_]+")


def laterality_conflict(answer: str, gold: str) -> bool:
    """Whether on some axis both texts name ends, and not the same ones.

    "Bilateral" names left and right, so that it conflicts with either alone. A text that names no end conflicts with
    none.
    """
    return any(a and g and a != g for a, g in zip(_ends(answer), _ends(gold), strict=True))


def _ends(text: str) -> list[frozenset[int]]:
    """For every axis which of its two ends the text names."""
    words: set[str] = set()
    for word in _WORD.findall(text.casefold()):
        words.update(_INITIALS.get(word, (word,)))
    # "Both" speaks of sides only where none is named: "both margins of the left lobe" do not.
    if words & _BOTH_SIDES or ("both" in words and not words & (_AXES[0][0] | _AXES[0][1])):
        words |= {"left", "right"}
    return [frozenset(end for end in (0, 1) if words & axis[end]) for axis in _AXES]
