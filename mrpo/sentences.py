"""Where one sentence of radiology or pathology prose ends and the next begins.

One compiled expression proposes boundaries, a few rules reject those after abbreviations, initials and list markers.
Every expression here is linear in the text's length, whatever a policy writes.
"""

from __future__ import annotations

import re

# A terminator run with the quotes, brackets and emphasis that close over it; a terminator of a script that needs no
# space after it; or a line break. The look-behind lets a run be tried once only, from its first character.
_CANDIDATE = re.compile(
    r"(?<![.!?…])[.!?…]++[\"'”’»)\]*_`]*+(?=\s|\Z|(?<=[a-z]{3}\.)[A-Z][a-z])"
    r"|[。！？｡।॥؟۔]++[\"'”’»)\]」』）*_`]*+"
    r"|\n\s*+"
)
_FOLLOWING = re.compile(r"(\s*+)([\"'“‘«(\[*_`]*+)(\w*+)")
_SPACELESS = frozenset("。！？｡।॥؟۔")
_CLOSERS = "\"'”’»)]*_`"
_WORD_PART = frozenset(".-'’")
_LONGEST_WORD = 32  # characters looked at before a dot; longer than any abbreviation


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Nothing ends a sentence after these: they announce what follows.
_NEVER_LAST = _words(
    "dr mr mrs ms prof st messrs rev gen sen "
    "fig figs eq eqs sec ref refs tab vol ed eds pp chap "
    "approx ca cf vs viz resp incl excl esp e.g i.e eg ie "
    "dx'd d.d s.p c.w w.r.t"
)
# These end a sentence only if the next word is one that opens sentences.
_SELDOM_LAST = _words(
    "etc al inc jr sr dept hosp univ assoc max min avg temp diam circ lat med ant post sup inf prox dist bilat unilat "
    "neg pos hx dx tx rx sx fx pt pts yr yrs mo mos wk wks hr hrs est spp sp subsp var art vein lig musc "
    "a.m p.m p.o i.v i.m s.c b.i.d t.i.d q.i.d q.d q.h p.r.n s.l a.c p.c u.s u.k m.d ph.d c.f n.b a.k.a a.p p.a"
)
_UNITS = _words(
    "mm cm dm m km um nm ml dl cl l cc mg kg g gy mgy hu t hz khz mhz kv kvp mas ms s sec secs min mins "
    "deg in ft lb lbs oz mmhg kpa bpm mmol mol iu meq"
)
_NUMBER_ABBREVIATIONS = _words("no nos nr")
_OPENERS = _words(
    "the this that these those there here it its he she his her they their we our i you a an in on at as of for from "
    "with without within if no not both each all some any one two several however therefore thus hence so then also "
    "additionally furthermore moreover finally first second next overall given based because since while when where "
    "what which although though but and or is are was were let now after before by to among between compared "
    "considering patient patients"
)
# Of these only a few open a sentence that is typed without its capital.
_LOWER_CASE_OPENERS = _words("the this these those there it")
_AFTER_NAMED_LETTER = _words(
    "vitamin hepatitis type group option panel image figure stage grade class answer choice category factor view arrow "
    "label level influenza child-pugh"
)
_CODE = re.compile(r"[A-Za-z]{1,2}\d{1,2}[a-c]?")  # T1, L4, N0, M1a
_VOWEL = re.compile(r"[aeiouyà-ÿ]", re.IGNORECASE)
_LIST_LEAD = frozenset(":;,(-–—*•\n")


def sentence_spans(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Half-open character ranges of the sentences of `text[start:end]`, ordered, disjoint, free of outer whitespace.

    A fragment that is only a list marker ("1.", "Step 2.", "**b)**") joins the sentence after it. A range without a
    letter or digit gives none.
    """
    fragments: list[tuple[int, int]] = []
    begin, rejected = start, -1
    for match in _CANDIDATE.finditer(text, start, end):
        stop = match.end()
        if text[match.start()] == "\n":
            stop = match.start()
            if not _line_ends_sentence(text, begin, match.start(), match.end(), end, rejected):
                continue
        elif text[match.start()] not in _SPACELESS and not _dot_ends_sentence(text, begin, match, end):
            rejected = stop
            continue
        begin = _append(fragments, text, begin, stop)
    _append(fragments, text, begin, end)
    return _join_markers(text, fragments)


def _append(fragments: list[tuple[int, int]], text: str, begin: int, stop: int) -> int:
    """Add `text[begin:stop]` without its outer whitespace, unless nothing is left. Returns `stop`."""
    piece = text[begin:stop]
    lead = len(piece) - len(piece.lstrip())
    if lead < len(piece):
        fragments.append((begin + lead, begin + len(piece.rstrip())))
    return stop


def _dot_ends_sentence(text: str, begin: int, match: re.Match[str], end: int) -> bool:
    """Whether the terminator run `match` ends the sentence that started at `begin`."""
    following = _FOLLOWING.match(text, match.end(), end)
    assert following is not None  # every part of the pattern may be empty
    space, _, word = following.groups()
    if following.end() == end and not word:
        return True  # nothing but whitespace and signs is left
    run = match.group()
    # Caseless scripts count as capitals: a stop there ends a sentence.
    continues = word[:1].islower()
    opener = word in _LOWER_CASE_OPENERS if continues else word.lower() in _OPENERS
    if run[0] != "." or len(run) > 1:
        # "(?) in the lung", "and ... then": closed over or trailing off in mid-sentence
        mid_sentence = continues and (run[-1] in _CLOSERS or run[:2] == ".." or run[0] == "…")
        return not mid_sentence
    before = _word_before(text, begin, match.start())
    return _abbreviation_rules(before, word, opener, continues, "\n" in space, text, begin, match.start())


def _abbreviation_rules(
    before: str, word: str, opener: bool, continues: bool, breaks_line: bool, text: str, begin: int, dot: int
) -> bool:
    """Whether one dot after the word `before` and ahead of `word` ends a sentence."""
    lower = before.lower()
    if lower in _NEVER_LAST:
        return False
    if lower in _NUMBER_ABBREVIATIONS and word[:1].isdigit():
        return False
    if lower in _SELDOM_LAST or _is_dotted(lower):
        return not continues and (opener or breaks_line)
    if lower in _UNITS or _CODE.fullmatch(before):
        return opener or not (continues or word[:1].isdigit() or _CODE.fullmatch(word))
    if len(before) == 1 and before.isalpha():
        if breaks_line or _word_before(text, begin, dot - 2).lower() in _AFTER_NAMED_LETTER:
            return not continues
        return opener  # "H. pylori", "J. Smith"
    if before.isdigit() and len(before) <= 2 and _leads_list(text, begin, dot - len(before)):
        return False  # "Findings: 1. Nodule"
    if continues and not opener:
        # A lower-case word after a dot: a full word ended a carelessly typed sentence, a short one is an abbreviation.
        return len(before) > 3 and before.isalpha() and _VOWEL.search(before) is not None
    return True


def _word_before(text: str, begin: int, stop: int) -> str:
    """The word that ends at `stop`, inner dots, hyphens and apostrophes included."""
    low = max(begin, stop - _LONGEST_WORD)
    first = stop
    while first > low and (text[first - 1].isalnum() or text[first - 1] in _WORD_PART):
        first -= 1
    return text[first:stop].lstrip(".-'’")


def _is_dotted(word: str) -> bool:
    """Letters with dots between: "a.b.c"."""
    parts = word.split(".")
    return len(parts) > 1 and all(len(part) == 1 and part.isalpha() for part in parts)


def _leads_list(text: str, begin: int, position: int) -> bool:
    """Whether a number at `position` opens a list item: a colon, comma or bracket stands before it."""
    head = text[max(begin, position - 3) : position].rstrip(" ")
    return bool(head) and head[-1] in _LIST_LEAD


def _line_ends_sentence(text: str, begin: int, stop: int, following: int, end: int, rejected: int) -> bool:
    """Whether the line break between `stop` and `following` separates sentences."""
    line = text[begin:stop].rstrip()
    if following >= end or not line:
        return True
    if line.rstrip("*_` ").endswith(":"):
        return False  # a heading belongs to what it announces
    if text.count("\n", stop, following) > 1:
        return True
    if begin + len(line) == rejected:
        return False  # the line ends in an abbreviation
    return not text[following].islower()


_MARKER = re.compile(
    r"[\W_]*(?:(?:step|point|finding|item|part)[\W_]{0,3})?(?:\d{1,3}|[a-z]|[ivx]{1,4})?[\W_]*", re.IGNORECASE
)
_LONGEST_MARKER = 20
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")


def _join_markers(text: str, fragments: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Give list markers and bare signs to the sentence after them; at the end, signs go to the one before."""
    sentences: list[tuple[int, int]] = []
    pending = -1  # where a marker that waits for its sentence begins
    for index, (start, end) in enumerate(fragments):
        signs_only = _LETTER_OR_DIGIT.search(text, start, end) is None
        marker = signs_only or (end - start <= _LONGEST_MARKER and _MARKER.fullmatch(text, start, end) is not None)
        first = start if pending < 0 else pending
        if marker and index + 1 < len(fragments):
            pending = first
            continue
        pending = -1
        if not signs_only or _LETTER_OR_DIGIT.search(text, first, end) is not None:
            sentences.append((first, end))
        elif sentences:
            sentences[-1] = (sentences[-1][0], end)
    return sentences
