"""From a completion's text to its reasoning steps, their tokens and its answer (algorithm §1).

Letters: T completion tokens, K steps. Offsets are half-open character ranges [T] that come only from decoding the
generated ids: a sampled sequence need not re-encode to itself.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np

from mrpo.errors import ConfigError
from mrpo.sentences import sentence_spans
from mrpo.types import Step

__all__ = ["Step", "extract_answer", "offsets_from_pieces", "split_steps", "think_token_counts", "token_spans"]

Offsets = Sequence[tuple[int, int]]


def split_steps(
    text: str, *, think_tag: str = "think", strategy: str = "sentence", offsets: Offsets | None = None
) -> list[Step]:
    """The reasoning steps of a completion, in order, disjoint, with `text[start:end]` the step's text.

    Args:
        text: the whole completion.
        think_tag: name of the tag that holds the reasoning, matched case-insensitively.
        strategy: "sentence", or "fixed_tokens:N" for a cut every N tokens of each think block.
        offsets: [T] character ranges of the tokens; needed by "fixed_tokens:N" only.

    Returns:
        No steps where there is no closed think block, or only empty ones.

    Raises:
        ConfigError: an unknown strategy, or "fixed_tokens:N" without offsets.
    """
    num_tokens = _tokens_per_step(strategy)
    if num_tokens is not None and offsets is None:
        raise ConfigError(f"step strategy {strategy!r} needs the tokens' character offsets, got offsets=None")
    steps: list[Step] = []
    for block_start, block_end in _think_blocks(text, think_tag):
        if num_tokens is None or offsets is None:
            spans = sentence_spans(text, block_start, block_end)
        else:
            spans = _fixed_token_spans(text, block_start, block_end, offsets, num_tokens)
        steps += [Step(text=text[start:end], start=start, end=end) for start, end in spans]
    return steps


def token_spans(steps: Sequence[Step], offsets: Offsets) -> list[tuple[int, int]]:
    """Half-open token ranges [K] of the steps, in order and disjoint; a range may be empty.

    A token belongs to a step when its characters overlap the step, and to the later one when it overlaps two.
    """
    starts, ends = _bounds(offsets)
    spans: list[tuple[int, int]] = []
    later_first = len(offsets)
    for step in reversed(steps):
        first = min(bisect_right(ends, step.start), later_first)
        stop = min(bisect_left(starts, step.end), later_first)
        spans.append((first, max(first, stop)))
        later_first = first
    spans.reverse()
    return spans


def extract_answer(text: str, *, think_tag: str = "think") -> str | None:
    """Text of the last closed answer tag after the last think block, stripped; None where there is none.

    A think block stops at an answer nested in it, so that the nested answer counts unless another one follows.
    """
    blocks = _think_blocks(text, think_tag)
    answer: str | None = None
    opened = -1
    for match in _tag_pattern("answer").finditer(text, blocks[-1][1] if blocks else 0):
        if not match.group(1):
            opened = match.end()
        elif opened >= 0:
            answer, opened = text[opened : match.start()].strip(), -1
    return answer


def think_token_counts(text: str, steps: Sequence[Step], offsets: Offsets, think_tag: str) -> tuple[int, int]:
    """How many tokens lie inside closed think blocks, and how many of these belong to a step.

    Tokens that are only whitespace between steps belong to none by definition and are not counted.

    Returns:
        (think_tokens, step_tokens); their quotient is steps/token_coverage.
    """
    in_step = bytearray(len(offsets))
    for first, stop in token_spans(steps, offsets):
        in_step[first:stop] = b"\1" * (stop - first)
    starts, ends = _bounds(offsets)
    outside: set[int] = set()  # one token may touch two blocks
    for block_start, block_end in _think_blocks(text, think_tag):
        for index in range(bisect_right(ends, block_start), bisect_left(starts, block_end)):
            start, end = offsets[index]
            if not in_step[index] and text[max(start, block_start) : min(end, block_end)].strip():
                outside.add(index)
    step_tokens = sum(in_step)
    return step_tokens + len(outside), step_tokens


def _bounds(offsets: Offsets) -> tuple[list[int], list[int]]:
    """Starts and ends [T] of the tokens, ascending, ready to be searched.

    Running maxima change nothing in offsets that come from decoding, and keep token ranges ordered for any others.
    """
    if not offsets:
        return [], []
    starts, ends = zip(*offsets, strict=True)
    return list(accumulate(starts, max)), list(accumulate(ends, max))


def offsets_from_pieces(pieces: Sequence[bytes]) -> tuple[str, list[tuple[int, int]]]:
    """Decode per-token bytes to text and the characters each token touches.

    Args:
        pieces: [T] bytes of each token; empty for tokens that leave no text.

    Returns:
        The UTF-8 decoding of all bytes together, undecodable ones replaced by U+FFFD, and [T] half-open character
        ranges. Tokens that share a character all have it; a token without bytes has an empty range.
    """
    data = b"".join(pieces)
    stops = list(accumulate(map(len, pieces)))
    if data.isascii():
        return data.decode("ascii"), list(zip([0, *stops], stops, strict=False))
    text = data.decode("utf-8", errors="replace")
    char_of_byte = [*_char_of_byte(data), len(text)]
    offsets: list[tuple[int, int]] = []
    first = 0
    for stop in stops:
        if first < stop:
            offsets.append((char_of_byte[first], char_of_byte[stop - 1] + 1))
        else:
            offsets.append((char_of_byte[first], char_of_byte[first]))
        first = stop
    return text, offsets


def _char_of_byte(data: bytes) -> list[int]:
    """For every byte the index of the character it is part of, replacement characters counted."""
    begins = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80  # not a continuation byte
    position = 0
    while position < len(data):
        try:
            data[position:].decode("utf-8")
            break
        except UnicodeDecodeError as error:
            # The decoder replaces exactly this range by one character.
            begins[position + error.start] = True
            begins[position + error.start + 1 : position + error.end] = False
            position += error.end
    indices: list[int] = (np.cumsum(begins) - 1).tolist()
    return indices


@lru_cache
def _tag_pattern(*names: str) -> re.Pattern[str]:
    """Opening and closing tags of the given names; group 1 is "/" in a closing tag, group 2 the name."""
    return re.compile(f"<(/?)({'|'.join(map(re.escape, names))})>", re.IGNORECASE)


def _think_blocks(text: str, think_tag: str) -> list[tuple[int, int]]:
    """Character ranges inside closed think blocks, each stopped at an answer nested in it.

    A second opening tag inside a block changes nothing: otherwise reasoning could hide from the judge before it.
    """
    blocks: list[tuple[int, int]] = []
    opened = nested = -1
    for match in _tag_pattern(think_tag, "answer").finditer(text):
        closing, is_answer = match.group(1) == "/", match.group(2).lower() == "answer"
        if opened < 0:
            if not closing and not is_answer:
                opened, nested = match.end(), -1
        elif is_answer:
            if not closing and nested < 0:
                nested = match.start()
        elif closing:
            blocks.append((opened, match.start() if nested < 0 else nested))
            opened = -1
    return blocks


def _tokens_per_step(strategy: str) -> int | None:
    """N of "fixed_tokens:N"; None for "sentence"."""
    if strategy == "sentence":
        return None
    name, _, number = strategy.partition(":")
    if name == "fixed_tokens" and number.isascii() and number.isdigit() and int(number) > 0:
        return int(number)
    raise ConfigError(f"step strategy {strategy!r} is unknown; use 'sentence' or 'fixed_tokens:N' with N of at least 1")


def _fixed_token_spans(
    text: str, block_start: int, block_end: int, offsets: Offsets, num_tokens: int
) -> list[tuple[int, int]]:
    """Character ranges of every `num_tokens` tokens of one block, outer whitespace left out."""
    inside = [(start, end) for start, end in offsets if start < end and end > block_start and start < block_end]
    spans: list[tuple[int, int]] = []
    cursor = block_start
    for index in range(0, len(inside), num_tokens):
        chunk = inside[index : index + num_tokens]
        # Two tokens may share a character whose bytes are split between them; it goes to the earlier chunk.
        start, end = max(cursor, chunk[0][0]), min(block_end, chunk[-1][1])
        piece = text[start:end]
        if piece.strip():
            cursor = end
            lead = len(piece) - len(piece.lstrip())
            spans.append((start + lead, start + len(piece.rstrip())))
    return spans
