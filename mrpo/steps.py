"""From a completion's text to its reasoning steps, their tokens and its answer (algorithm §1).

Letters: T completion tokens, K steps. Offsets are half-open character ranges [T] that come only from decoding the
generated ids: a sampled sequence need not re-encode to itself.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from mrpo.errors import ConfigError
from mrpo.sentences import sentence_spans
from mrpo.types import Step

__all__ = [
    "Segmentation",
    "Step",
    "extract_answer",
    "offsets_from_pieces",
    "segment",
    "split_steps",
    "think_token_counts",
    "token_spans",
]

Offsets = Sequence[tuple[int, int]]
Blocks = list[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """All that is found in a completion's text. Made by `segment`, read by `rollout`."""

    steps: list[Step]  # [K]
    spans: list[tuple[int, int]]  # [K] half-open token ranges, may be empty
    answer: str | None  # text of the last closed answer tag after the last think block
    think_tokens: int  # see `think_token_counts`
    step_tokens: int


def segment(text: str, offsets: Offsets, *, think_tag: str, strategy: str) -> Segmentation:
    """Steps, their tokens, the answer and the token counts of a completion, each tag looked at once.

    The result is that of `split_steps`, `token_spans`, `extract_answer` and `think_token_counts`.

    Args:
        text: the whole completion.
        offsets: [T] character ranges of the tokens.
        think_tag: name of the tag that holds the reasoning.
        strategy: see `split_steps`.

    Raises:
        ConfigError: an unknown strategy.
    """
    bounds = _bounds(offsets)
    blocks, answer = _read_tags(text, think_tag)
    steps = _steps_of(text, blocks, _tokens_per_step(strategy), offsets, bounds)
    spans = _spans_of(steps, *bounds)
    think_tokens, step_tokens = _count_tokens(text, blocks, spans, offsets, *bounds)
    return Segmentation(steps=steps, spans=spans, answer=answer, think_tokens=think_tokens, step_tokens=step_tokens)


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
    tokens_per_step = _tokens_per_step(strategy)
    if tokens_per_step is not None and offsets is None:
        raise ConfigError(f"step strategy {strategy!r} needs the tokens' character offsets, got offsets=None")
    known = offsets or []
    blocks, _ = _read_tags(text, think_tag)
    return _steps_of(text, blocks, tokens_per_step, known, _bounds(known))


def token_spans(steps: Sequence[Step], offsets: Offsets) -> list[tuple[int, int]]:
    """Half-open token ranges [K] of the steps, in order and disjoint; a range may be empty.

    A token belongs to a step when its characters overlap the step, and to the later one when it overlaps two.
    """
    return _spans_of(steps, *_bounds(offsets))


def extract_answer(text: str, *, think_tag: str = "think") -> str | None:
    """Text of the last closed answer tag after the last think block, stripped; None where there is none.

    A think block stops at an answer nested in it, so that the nested answer counts unless another one follows.
    """
    return _read_tags(text, think_tag)[1]


def think_token_counts(text: str, steps: Sequence[Step], offsets: Offsets, think_tag: str) -> tuple[int, int]:
    """How many tokens lie inside closed think blocks, and how many of these belong to a step.

    Tokens that are only whitespace between steps belong to none by definition and are not counted.

    Returns:
        (think_tokens, step_tokens); their quotient is steps/token_coverage.
    """
    bounds = _bounds(offsets)
    blocks, _ = _read_tags(text, think_tag)
    return _count_tokens(text, blocks, _spans_of(steps, *bounds), offsets, *bounds)


def offsets_from_pieces(pieces: Sequence[bytes]) -> tuple[str, list[tuple[int, int]]]:
    """Decode per-token bytes to text and the characters each token touches.

    Args:
        pieces: [T] bytes of each token; empty for tokens that leave no text.

    Returns:
        The UTF-8 decoding of all bytes together, undecodable ones replaced by U+FFFD, and [T] half-open character
        ranges. Tokens that share a character all have it; a token without bytes has an empty range.
    """
    data = b"".join(pieces)
    lengths = np.fromiter(map(len, pieces), dtype=np.intp, count=len(pieces))
    stops = np.cumsum(lengths)
    firsts = stops - lengths
    if data.isascii():
        return data.decode("ascii"), list(zip(firsts.tolist(), stops.tolist(), strict=True))
    char_of_byte = _char_of_byte(data)
    starts = char_of_byte[firsts]
    ends = np.where(lengths > 0, char_of_byte[stops - 1] + 1, starts)
    text = data.decode("utf-8", errors="replace")
    return text, list(zip(starts.tolist(), ends.tolist(), strict=True))


def _char_of_byte(data: bytes) -> NDArray[np.intp]:
    """For every byte, and for the end, the index of the character there, replacement characters counted."""
    begins = np.ones(len(data) + 1, dtype=np.bool_)
    begins[:-1] = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80  # not a continuation byte
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
    return np.cumsum(begins) - 1


def _bounds(offsets: Offsets) -> tuple[list[int], list[int]]:
    """Starts and ends [T] of the tokens, ascending, ready to be searched.

    Running maxima change nothing in offsets that come from decoding, and keep token ranges ordered for any others.
    """
    if not offsets:
        return [], []
    starts, ends = map(list, zip(*offsets, strict=True))
    if starts == sorted(starts) and ends == sorted(ends):
        return starts, ends
    return list(accumulate(starts, max)), list(accumulate(ends, max))


def _steps_of(
    text: str,
    blocks: Blocks,
    tokens_per_step: int | None,
    offsets: Offsets,
    bounds: tuple[list[int], list[int]],
) -> list[Step]:
    """The steps of all blocks, sentences where `tokens_per_step` is None."""
    steps: list[Step] = []
    for block_start, block_end in blocks:
        if tokens_per_step is None:
            spans = sentence_spans(text, block_start, block_end)
        else:
            first, stop = _tokens_inside(block_start, block_end, *bounds)
            spans = _fixed_token_spans(text, block_start, block_end, offsets[first:stop], tokens_per_step)
        steps += [Step(text=text[start:end], start=start, end=end) for start, end in spans]
    return steps


def _spans_of(steps: Sequence[Step], starts: list[int], ends: list[int]) -> list[tuple[int, int]]:
    """Token ranges [K] of the steps, from the last to the first, so that a shared token goes to the later one."""
    spans: list[tuple[int, int]] = []
    later_first = len(starts)
    for step in reversed(steps):
        first = bisect_right(ends, step.start, 0, later_first)
        stop = bisect_left(starts, step.end, first, later_first)
        spans.append((first, stop))
        later_first = first
    spans.reverse()
    return spans


def _tokens_inside(block_start: int, block_end: int, starts: list[int], ends: list[int]) -> tuple[int, int]:
    """The range of tokens that share a character with a block."""
    return bisect_right(ends, block_start), bisect_left(starts, block_end)


def _count_tokens(
    text: str,
    blocks: Blocks,
    spans: list[tuple[int, int]],
    offsets: Offsets,
    starts: list[int],
    ends: list[int],
) -> tuple[int, int]:
    """Tokens of the blocks that are more than whitespace, and tokens in steps: see `think_token_counts`."""
    step_tokens = sum(stop - first for first, stop in spans)
    outside: set[int] = set()  # one token may touch two blocks
    following = 0  # the first step that may end after the position
    for block_start, block_end in blocks:
        position, block_stop = _tokens_inside(block_start, block_end, starts, ends)
        while position < block_stop:
            while following < len(spans) and spans[following][1] <= position:
                following += 1
            first, stop = spans[following] if following < len(spans) else (block_stop, block_stop)
            for index in range(position, min(first, block_stop)):
                start, end = offsets[index]
                if text[max(start, block_start) : min(end, block_end)].strip():
                    outside.add(index)
            position = max(position, stop)
    return step_tokens + len(outside), step_tokens


@lru_cache
def _tag_pattern(think_tag: str) -> re.Pattern[str]:
    """Think and answer tags, in either case; group 1 is "/" in a closing tag, group 2 the name."""
    return re.compile(f"<(/?)({re.escape(think_tag)}|answer)>", re.IGNORECASE)


def _read_tags(text: str, think_tag: str) -> tuple[Blocks, str | None]:
    """Character ranges inside closed think blocks, each stopped at an answer nested in it, and the answer.

    A second opening tag inside a block changes nothing: otherwise reasoning could hide from the judge before it.
    """
    tags = [
        (match.start(), match.end(), match.group(1) == "/", match.group(2).lower() == "answer")
        for match in _tag_pattern(think_tag).finditer(text)
    ]
    blocks: Blocks = []
    opened = nested = -1
    for start, end, closing, is_answer in tags:
        if opened < 0:
            if not closing and not is_answer:
                opened, nested = end, -1
        elif is_answer:
            if not closing and nested < 0:
                nested = start
        elif closing:
            blocks.append((opened, start if nested < 0 else nested))
            opened = -1
    answer: str | None = None
    after = blocks[-1][1] if blocks else 0
    opened = -1
    for start, end, closing, is_answer in tags:
        if not is_answer or start < after:
            continue
        if not closing:
            opened = end
        elif opened >= 0:
            answer, opened = text[opened:start].strip(), -1
    return blocks, answer


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
    """Character ranges of every `num_tokens` of the tokens of one block, outer whitespace left out."""
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
