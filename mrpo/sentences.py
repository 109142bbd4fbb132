"""Where one sentence of radiology or pathology prose ends and the next begins.

One compiled expression proposes boundaries, a few rules reject those after abbreviations, initials and list markers.
Every step here is linear in the text's length, whatever a policy writes.
"""

from __future__ import annotations

import re

from mrpo import abbreviations as words

# A terminator run with the quotes, brackets and emphasis that close over it; a terminator of a script that needs no
# space after it; or a line break. All begin with one character class, which the search skips to. A run is tried once
# only, from its first character.
_SPACELESS = "。！？｡।॥؟۔።፧፨։။។៕᙮᠃꓿"
_CANDIDATE = re.compile(
    rf"[.!?…\n{_SPACELESS}](?:"
    r"(?<=[.!?…])(?<![.!?…].)(?!(?<=\.)[a-z0-9])"
    r"[.!?…]*+(?: \.(?=\s|\Z))*+[\"'”’»)\]*_`]*+(?:[ \u00a0\u202f]»(?=\s|\Z))?+(?=\s|\Z|[A-Z][a-z\s])"
    r"|(?<=\n)\s*+"
    rf"|(?<=[{_SPACELESS}])[{_SPACELESS}]*+[\"'”’»)\]」』）*_`]*+[{_SPACELESS}]*+)"
)
_FOLLOWING = re.compile(r"(\s*+)([\"'“‘«(\[*_`]*+)(\w*+)")
_TERMINATORS = frozenset(".!?…")
_CLOSERS = "\"'”’»)]*_`"
_WORD_PART = frozenset(".-'’")
_LONGEST_WORD = 32  # characters looked at before a dot; longer than any abbreviation

_CODE = re.compile(r"[A-Za-z]{1,2}\d{1,2}[a-c]?")  # T1, L4, N0, M1a
_STAGING = re.compile(r"(?:[cpyr]{0,2}[tT]\d[a-d]?|[cpyr]{0,2}[nN]\d[a-c]?)")
_STAGING_REST = re.compile(r"[cpyr]{0,2}[NMRG]\d[a-c]?")
_TIMES = re.compile(r"x\d*")  # "3 cm. x 4 cm."
_PLAIN_LOWER = re.compile(r"[^\W\d_]+")
_VOWEL = re.compile(r"[aeiouyà-ÿ]", re.IGNORECASE)
_LIST_LEAD = frozenset(":;,(-–—*•#\n")
_LIST_ITEM = re.compile(
    r"[-*+•–—‣▪◦●○·>|]\s"
    r"|#{1,6}\s"
    r"|(?:\*\*|__)?\(?(?:\d{1,3}(?:\.\d{1,2})*[.)]|[a-zA-Z]\)|[a-z]\.|[ivx]{1,4}[.)])(?:\*\*|__)?\s"
)
_BARE_NUMBER = re.compile(r"\d+(?:[.,]\d+)+")


def sentence_spans(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Half-open character ranges of the sentences of `text[start:end]`, ordered, disjoint, free of outer whitespace.

    A fragment that is only a list marker ("1.", "Step 2.", "**b)**") joins the sentence after it. A range without a
    letter or digit gives none.
    """
    fragments: list[tuple[int, int]] = []
    begin, rejected = start, -1
    for match in _CANDIDATE.finditer(text, start, end):
        first, stop = match.span()
        sign = text[first]
        if sign == "\n":
            if _line_ends_sentence(text, start, begin, first, stop, end, rejected):
                _append(fragments, text, begin, first)
                begin = stop
            continue
        if sign in _TERMINATORS:
            ends = _run_ends_sentence(text, begin, first, stop, end)
        else:
            # "（细菌性？），" asks in mid-sentence, unlike "（…。）"
            ends = sign not in "？！" or text[stop - 1] not in "）」』" or stop == end or text[stop].isspace()
        if not ends:
            rejected = stop
            continue
        _append(fragments, text, begin, stop)
        begin = stop
    _append(fragments, text, begin, end)
    return _join_markers(text, fragments)


def _append(fragments: list[tuple[int, int]], text: str, begin: int, stop: int) -> None:
    """Add `text[begin:stop]` without its outer whitespace, unless nothing is left."""
    piece = text[begin:stop]
    bare = piece.lstrip()
    if bare:
        first = stop - len(bare)
        fragments.append((first, first + len(bare.rstrip())))


def _run_ends_sentence(text: str, begin: int, dot: int, stop: int, end: int) -> bool:
    """Whether the terminators, and what closes over them, in `text[dot:stop]` end the sentence begun at `begin`."""
    following = _FOLLOWING.match(text, stop, end)
    assert following is not None  # every part of the pattern may be empty
    space, signs, word = following.groups()
    if not word and following.end() == end:
        return True  # nothing but whitespace and signs is left
    # Caseless scripts count as capitals, and so do "p53", "pH", "mRNA": a stop there ends a sentence.
    continues = word[:1].islower() and (
        (word.islower() and _PLAIN_LOWER.fullmatch(word) is not None) or _TIMES.fullmatch(word) is not None
    )
    opener = word in words.LOWER_CASE_OPENERS if continues else word.lower() in words.OPENERS
    if not space and not signs and not opener and not _typed_without_space(text, begin, dot, stop):
        return False
    if text[dot] != "." or stop - dot > 1:
        # "(?) in the lung", "and ... then": closed over or trailing off in mid-sentence
        trails_off = text[dot] == "…" or (stop - dot > 1 and text[dot + 1] in ".… ")
        return not (continues and (trails_off or text[stop - 1] in _CLOSERS))
    lists = "\n" in space and _LIST_ITEM.match(text, following.end(1), end) is not None
    return _dot_ends_sentence(text, begin, dot, word, continues, opener, "\n" in space, lists)


def _typed_without_space(text: str, begin: int, dot: int, stop: int) -> bool:
    """Whether a lone dot between a lower-case word and a capital is a full stop: "normal.Spleen", not "Ph.Eur"."""
    before = text[max(begin, dot - 3) : dot]
    return stop - dot == 1 and len(before) == 3 and before.isascii() and before.isalpha() and before.islower()


def _dot_ends_sentence(
    text: str, begin: int, dot: int, word: str, continues: bool, opener: bool, breaks_line: bool, lists: bool
) -> bool:
    """Whether one dot ends a sentence.

    Args:
        text: the whole completion.
        begin: where the sentence began.
        dot: index of the dot.
        word: the next word, possibly empty.
        continues: `word` is in lower case.
        opener: `word` often opens sentences.
        breaks_line: a line break stands before `word`.
        lists: and after it a list marker.
    """
    before = _word_before(text, begin, dot)
    lower = before.lower()
    if lower in words.NEVER_LAST or (lower in words.BEFORE_NUMBER and word[:1].isdigit() and not lists):
        return False
    if lists:
        return True
    if lower in words.LAST_BEFORE_CAPITAL:
        return not continues and (opener or breaks_line or _opens_after_time(word))
    if lower in words.SELDOM_LAST or _is_dotted(lower):
        return not continues and (opener or breaks_line)
    if lower in words.UNITS and (len(before) > 1 or _number_before(text, begin, dot - 2)):
        return opener or not (continues or _goes_on_after_unit(text, word, dot))
    if _CODE.fullmatch(before):
        return opener or not (continues or (_STAGING.fullmatch(before) and _STAGING_REST.fullmatch(word)))
    if len(before) == 1 and before.isalpha():
        if breaks_line or _word_before(text, begin, dot - 2).lower() in words.BEFORE_NAMED_LETTER:
            return not continues
        return opener  # "H. pylori", "J. Smith"
    if before.isdigit() and len(before) <= 2 and _leads_list(text, begin, dot - len(before)):
        return False  # "Findings: 1. Nodule"
    if not continues or opener or not before:
        return True  # a sign or bracket, which `before` leaves out, is no abbreviation
    # A lower-case word after a dot: a decimal, a full word or an acronym ended a carelessly typed sentence; a short
    # word is an abbreviation, and so is what only goes on.
    if word in words.NEVER_FIRST:
        return False
    if before.isalpha():
        return (len(before) > 3 and _VOWEL.search(before) is not None) or (len(before) > 1 and before.isupper())
    return _BARE_NUMBER.fullmatch(before) is not None


def _opens_after_time(word: str) -> bool:
    return word[:1].isupper() and word.lower() not in words.CALENDAR


def _number_before(text: str, begin: int, stop: int) -> bool:
    """Whether a digit stands before `stop`, or before the space that ends there."""
    return text[max(begin, stop - 1) : stop + 1].strip()[-1:].isdigit()


_QUANTITY = re.compile(r"\s*+(\d[\d.,]*+)\s?([^\W\d_]++)?")


def _goes_on_after_unit(text: str, word: str, dot: int) -> bool:
    """Whether the word after a unit's dot belongs to the quantity: "5 ft. 2 in.", "120 mm. Hg"."""
    if word.lower() in words.UNIT_COMPLEMENTS:
        return True
    quantity = _QUANTITY.match(text, dot + 1)
    return quantity is not None and (quantity.group(2) or "").lower() in words.UNITS


def _word_before(text: str, begin: int, stop: int) -> str:
    """The word that ends at `stop`, inner dots, hyphens and apostrophes included."""
    low = max(begin, stop - _LONGEST_WORD)
    spaced = text[text.rfind(" ", low, stop) + 1 or low : stop]
    if spaced.isalnum():
        return spaced
    first = stop
    while first > low and (text[first - 1].isalnum() or text[first - 1] in _WORD_PART):
        first -= 1
    return text[first:stop].lstrip(".-'’")


def _is_dotted(word: str) -> bool:
    """Letters with dots between: "a.b.c"."""
    return "." in word and all(len(part) == 1 and part.isalpha() for part in word.split("."))


def _leads_list(text: str, begin: int, position: int) -> bool:
    """Whether a number at `position` opens a list item: a colon, comma or bracket stands before it, and no number
    before that, as in "3:1" and "levels 4, 5".
    """
    head = text[max(begin, position - 4) : position].rstrip(" ")
    return head[-1:] in _LIST_LEAD and head != "" and not head[:-1].rstrip(" ")[-1:].isdigit()


_MARKED_HEADING = re.compile(r"\s*(?:#{1,6}\s.*|(\*\*|__)[^*_\n]*\1\s*)")


def _line_ends_sentence(text: str, start: int, begin: int, stop: int, following: int, end: int, rejected: int) -> bool:
    """Whether the line break between `stop` and `following` separates sentences.

    Args:
        text: the whole completion.
        start: where the reasoning began.
        begin: where the sentence began.
        stop: index of the line break.
        following: index of the first character of the next line that has any.
        end: where the reasoning ends.
        rejected: end of the last run of terminators that ends no sentence.
    """
    last = stop
    while last > begin and text[last - 1].isspace():
        last -= 1
    if following >= end or last == begin:
        return True
    line_start = max(start, text.rfind("\n", start, last) + 1)
    if _announces(text, line_start, begin, last):
        return False
    if text.count("\n", stop, following) > 1:
        return True
    if last == rejected:
        return False  # the line ends in an abbreviation
    if _LIST_ITEM.match(text, following, end):
        return True
    if text[following].islower() or text[last - 1] == ",":
        return False
    return _word_before(text, begin, last) not in words.CONTINUING


def _announces(text: str, line_start: int, begin: int, last: int) -> bool:
    """Whether the line up to `last` is a heading: it belongs to what it announces."""
    position = last
    while position > begin and text[position - 1] in "*_` ":
        position -= 1
    if position > begin and text[position - 1] in ":：":
        return True
    # What a full stop ended is a sentence, in bold or not.
    return (
        begin < last
        and text[position - 1] not in ".!?…"
        and _MARKED_HEADING.fullmatch(text, line_start, last) is not None
    )


_MARKER = re.compile(
    r"[\W_]*(?:(?:step|point|finding|item|part)[\W_]{0,3})?(?:\d{1,3}(?:\.\d{1,2}){0,3}|[a-z]|[ivx]{1,4})?[\W_]*",
    re.IGNORECASE,
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
