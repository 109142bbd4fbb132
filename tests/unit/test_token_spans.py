"""Which tokens belong to which step, and which characters to which token."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo.steps import Step, offsets_from_pieces, split_steps, token_spans


def step(start: int, end: int) -> Step:
    return Step(text="x" * (end - start), start=start, end=end)


def test_a_token_belongs_to_the_step_it_overlaps_and_to_the_later_of_two() -> None:
    offsets = [(0, 2), (2, 5), (5, 8), (8, 9), (9, 12)]
    assert token_spans([step(2, 6), step(7, 9)], offsets) == [(1, 2), (2, 4)]


def test_a_step_whose_only_token_goes_to_the_next_has_an_empty_span() -> None:
    assert token_spans([step(1, 2), step(3, 4), step(5, 6)], [(0, 1), (1, 6), (6, 7)]) == [(1, 1), (1, 1), (1, 2)]


def test_a_token_between_steps_belongs_to_none() -> None:
    assert token_spans([step(0, 2), step(3, 5)], [(0, 2), (2, 3), (3, 5)]) == [(0, 1), (2, 3)]


def test_no_steps_and_no_tokens() -> None:
    assert token_spans([], [(0, 1)]) == []
    assert token_spans([step(0, 1)], []) == [(0, 0)]


def test_special_tokens_without_text_touch_no_character() -> None:
    text, offsets = offsets_from_pieces([b"ab", b"", b"c"])
    assert (text, offsets) == ("abc", [(0, 2), (2, 2), (2, 3)])


def test_a_character_split_over_tokens_belongs_to_all_of_them() -> None:
    a, e_1, e_2, rest = b"a", "é".encode()[:1], "é".encode()[1:], "肺b".encode()
    text, offsets = offsets_from_pieces([a, e_1, e_2, b"", rest])
    assert text == "aé肺b"
    assert offsets == [(0, 1), (1, 2), (1, 2), (2, 2), (2, 4)]


def test_undecodable_bytes_become_replacement_characters() -> None:
    text, offsets = offsets_from_pieces([b"a\xff", b"\xe8\x82", b"b", "é".encode()])
    assert text == "a\ufffd\ufffdbé"
    assert offsets == [(0, 2), (2, 3), (3, 4), (4, 5)]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=4) | st.text(max_size=3).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_offsets_cover_the_decoded_text(pieces: list[bytes]) -> None:
    text, offsets = offsets_from_pieces(pieces)
    assert text == b"".join(pieces).decode("utf-8", errors="replace")
    assert len(offsets) == len(pieces)
    assert {index for start, end in offsets for index in range(start, end)} == set(range(len(text)))
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)


@settings(deadline=None, max_examples=300)
@given(
    st.text(alphabet="aB. \n1é<", max_size=60),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), max_size=40),
    st.booleans(),
)
def test_spans_are_ordered_disjoint_and_in_range_for_any_offsets(
    think: str, offsets: list[tuple[int, int]], ascending: bool
) -> None:
    if ascending:
        bounds = sorted(bound for offset in offsets for bound in offset)
        offsets = list(itertools.pairwise(bounds))
    steps = split_steps(f"<think>{think}</think>")
    spans = token_spans(steps, offsets)
    assert len(spans) == len(steps)
    position = 0
    for first, stop in spans:
        assert position <= first <= stop <= len(offsets)
        position = stop
    if not ascending:
        return
    for index, (start, end) in enumerate(offsets):
        touched = [k for k, item in enumerate(steps) if max(start, item.start) < min(end, item.end)]
        if touched:  # tokens that come from decoding: exactly the later one
            assert [k for k, (first, stop) in enumerate(spans) if first <= index < stop] == touched[-1:]
