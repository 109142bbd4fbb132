"""What holds for any text and any offsets, and for any verdicts on any completion.

Letters: G completions of a group, T tokens, K steps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mrpo.advantages import (
    SHAPINGS,
    shape_step_advantages,
    step_weights,
)
from mrpo.advantages.credit import Credited
from mrpo.choices import AdvantageKind, JudgeFailurePolicy, Schedule, Shaping
from mrpo.config import AlgorithmConfig, RewardConfig
from mrpo.scoring import Trace, score_group_batch
from mrpo.steps import offsets_from_pieces, split_steps, token_spans
from mrpo.types import FailureReason
from tests.unit.synthetic_run import TRUTHS, make_completion, make_example, make_judgement

MANY = settings(deadline=None, max_examples=200)
SOME = settings(deadline=None, max_examples=50)  # of what takes long to draw

Offsets = list[tuple[int, int]]

GROUP = 4
TAGS = [
    "<think>",
    "</think>",
    "<THINK>",
    "</Think>",
    "<thinking>",
    "</thinking>",
    "<answer>",
    "</answer>",
    "<Answer>",
    "< think>",
    "<think",
    "</think",
    "<think/>",
    "<<think>>",
]
PROSE = [
    "The mass is 3.5 cm. ",
    "T1. ",
    "1. ",
    "e.g. ",
    "\n\n",
    "。",
    "\u2028",
    "\u200d",
    "e\u0301. ",
    "🩻! ",
    "- ",
    "** ",
]
TEXTS = st.lists(st.sampled_from(TAGS) | st.sampled_from(PROSE) | st.text(max_size=8), max_size=16).map("".join)
TAG_NAMES = st.sampled_from(["think", "thinking"])
STRATEGIES = st.sampled_from(["sentence", "fixed_tokens:1", "fixed_tokens:2", "fixed_tokens:5", "fixed_tokens:1000"])


def byte_pieces(text: str, cuts: list[int]) -> list[bytes]:
    """The text's UTF-8, cut anywhere: inside characters too, and with pieces of nothing."""
    data = text.encode()
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


@st.composite
def texts_and_offsets(draw: st.DrawFn) -> tuple[str, Offsets]:
    """A text with offsets that decoding gives, that ascend with overlaps, gaps and empty ranges, or that do neither."""
    text = draw(TEXTS)
    end = len(text) + 10
    kind = draw(st.sampled_from(["decoded", "ascending", "any"]))
    if kind == "decoded":
        decoded, offsets = offsets_from_pieces(byte_pieces(text, draw(st.lists(st.integers(0, 999), max_size=40))))
        assert decoded == text
        return text, offsets
    if kind == "ascending":
        starts = sorted(draw(st.lists(st.integers(0, end), max_size=40)))
        return text, [(start, start + draw(st.integers(0, 6))) for start in starts]
    return text, draw(st.lists(st.tuples(st.integers(0, end), st.integers(0, end)), max_size=40))


@MANY
@given(texts_and_offsets(), TAG_NAMES, STRATEGIES)
def test_steps_and_spans_are_ordered_disjoint_and_in_range(
    drawn: tuple[str, Offsets], think_tag: str, strategy: str
) -> None:
    text, offsets = drawn
    steps = split_steps(text, think_tag=think_tag, strategy=strategy, offsets=offsets)
    position = 0
    for step in steps:
        assert position <= step.start < step.end <= len(text)
        assert text[step.start : step.end] == step.text == step.text.strip()
        position = step.end
    spans = token_spans(steps, offsets)
    assert len(spans) == len(steps)
    position = 0
    for first, stop in spans:
        assert position <= first <= stop <= len(offsets)
        position = stop


@MANY
@given(TEXTS, st.lists(st.integers(0, 999), max_size=40), STRATEGIES)
def test_a_token_from_decoding_belongs_to_the_last_step_it_touches_or_to_none(
    text: str, cuts: list[int], strategy: str
) -> None:
    _, offsets = offsets_from_pieces(byte_pieces(text, cuts))
    steps = split_steps(text, strategy=strategy, offsets=offsets)
    spans = token_spans(steps, offsets)
    for token, (start, end) in enumerate(offsets):
        if start == end:
            continue  # no text: between two tokens of a step it may lie in the span, and changes nothing
        touched = [k for k, step in enumerate(steps) if max(start, step.start) < min(end, step.end)]
        assert [k for k, (first, stop) in enumerate(spans) if first <= token < stop] == touched[-1:]


@MANY
@given(st.text(max_size=60), st.lists(st.integers(0, 999), max_size=40), st.integers(1, 9))
def test_fixed_token_steps_hold_all_of_the_reasoning_and_at_most_so_many_tokens(
    reasoning: str, cuts: list[int], per_step: int
) -> None:
    assume("<" not in reasoning)
    text = f"<think>{reasoning}</think>"
    bounds = sorted({0, len(text), *(cut % len(text) for cut in cuts)})
    offsets = list(pairwise(bounds))
    steps = split_steps(text, strategy=f"fixed_tokens:{per_step}", offsets=offsets)
    assert "".join("".join(step.text.split()) for step in steps) == "".join(reasoning.split())
    assert all(stop - first <= per_step for first, stop in token_spans(steps, offsets))


@MANY
@given(st.text(max_size=20), st.lists(st.integers(0, 999), max_size=30))
def test_a_token_has_the_characters_its_bytes_are_of(text: str, cuts: list[int]) -> None:
    pieces = byte_pieces(text, cuts)
    decoded, offsets = offsets_from_pieces(pieces)
    character_of_byte = [index for index, character in enumerate(text) for _ in character.encode()]
    assert decoded == text
    position = 0
    for piece, (start, end) in zip(pieces, offsets, strict=True):
        if piece:
            assert (start, end - 1) == (
                character_of_byte[position],
                character_of_byte[position + len(piece) - 1],
            )
        assert bool(piece) == (start < end)
        position += len(piece)


@MANY
@given(st.binary(max_size=40), st.lists(st.integers(0, 99), max_size=12), st.integers(0, 99))
def test_cutting_a_token_in_two_moves_no_other(data: bytes, cuts: list[int], extra: int) -> None:
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(bounds)]
    text, offsets = offsets_from_pieces(pieces)
    assert text == data.decode("utf-8", errors="replace")
    at = extra % len(pieces)
    middle = extra % (len(pieces[at]) + 1)
    halves = [pieces[at][:middle], pieces[at][middle:]]
    same_text, finer = offsets_from_pieces(pieces[:at] + halves + pieces[at + 1 :])
    assert same_text == text
    assert finer[:at] == offsets[:at]
    assert finer[at + 2 :] == offsets[at + 1 :]
    touched = [bound for half, bound in zip(halves, finer[at : at + 2], strict=True) if half]
    if touched:
        assert (touched[0][0], touched[-1][1]) == offsets[at]


WEIGHING = st.sampled_from([schedule for schedule in Schedule if schedule != Schedule.NONE])
BASES = st.sampled_from([1.0, 2.0, math.e, 10.0])
NUMBERS = st.floats(-1e3, 1e3) | st.sampled_from([0.0, -0.0])
SHARES = st.floats(0, 1)


@st.composite
def completions(draw: st.DrawFn) -> Credited:
    """A completion with steps of any lengths and gaps, judged or not."""
    plan = draw(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 2)), max_size=12))
    spans, position = [], 0
    for _, length, gap in plan:
        spans.append((position + gap, position + gap + length))
        position += gap + length
    return Credited(
        advantage=draw(NUMBERS),
        verdicts=[valid for valid, _, _ in plan] if draw(st.integers(0, 4)) else None,
        spans=spans,
        num_tokens=position + draw(st.integers(0, 3)),
        answer_reward=draw(SHARES),
    )


def shape(item: Credited, **changes: object) -> list[float]:
    options = {"verdicts": item.verdicts, "answer_reward": item.answer_reward, **changes}
    return shape_step_advantages(item.advantage, spans=item.spans, num_tokens=item.num_tokens, **options)


def is_negative_zero(value: float) -> bool:
    return value == 0 and math.copysign(1.0, value) < 0


@MANY
@given(completions(), SHARES, WEIGHING, BASES)
def test_every_token_has_the_advantage_of_its_verdict(
    item: Credited, threshold: float, schedule: str, base: float
) -> None:
    shaped = shape(item, threshold=threshold, schedule=schedule, base=base)
    assert len(shaped) == item.num_tokens
    assert not any(map(is_negative_zero, shaped))
    expected = [item.advantage] * item.num_tokens
    if item.verdicts is not None and item.answer_reward <= threshold:
        weights = step_weights(len(item.spans), base, schedule)
        for (first, stop), valid, weight in zip(item.spans, item.verdicts, weights, strict=True):
            size = abs(item.advantage)
            expected[first:stop] = [size if valid else -weight * size] * (stop - first)
    assert shaped == expected


@MANY
@given(st.integers(1, 40), WEIGHING, BASES)
def test_penalties_lie_between_one_and_the_base_and_move_one_way(num_steps: int, schedule: str, base: float) -> None:
    weights = step_weights(num_steps, base, schedule)
    assert len(weights) == num_steps
    assert all(1 - 1e-12 <= weight <= base * (1 + 1e-12) for weight in weights)
    earlier_is_worse = schedule != Schedule.REVERSED
    assert weights == sorted(weights, reverse=earlier_is_worse)
    ends = [base, 1.0] if earlier_is_worse else [1.0, base]
    assert [weights[0], weights[-1]] == pytest.approx(ends if num_steps > 1 else [1.0, 1.0], rel=1e-12)


@MANY
@given(completions(), WEIGHING)
def test_base_one_is_the_uniform_penalty(item: Credited, schedule: str) -> None:
    shaped = shape(item, answer_reward=0.0, schedule=schedule, base=1.0)
    size = abs(item.advantage)
    for (first, stop), valid in zip(item.spans, item.verdicts or (), strict=item.verdicts is not None):
        assert shaped[first:stop] == [size if valid else -size] * (stop - first)


@MANY
@given(NUMBERS, WEIGHING, BASES, st.booleans())
def test_a_single_step_weighs_one(advantage: float, schedule: str, base: float, valid: bool) -> None:
    shaped = shape_step_advantages(advantage, [valid], [(1, 3)], 4, 0.0, schedule=schedule, base=base)
    value = abs(advantage) if valid else -abs(advantage)
    assert shaped == [advantage, value, value, advantage]


@MANY
@given(completions(), SHARES, WEIGHING, BASES)
def test_the_threshold_itself_is_wrong_and_whatever_is_above_it_right(
    item: Credited, threshold: float, schedule: str, base: float
) -> None:
    options = {"threshold": threshold, "schedule": schedule, "base": base}
    assert shape(item, answer_reward=threshold, **options) == shape(item, answer_reward=-1.0, **options)
    above = math.nextafter(threshold, 2.0)
    assert shape(item, answer_reward=above, **options) == [item.advantage] * item.num_tokens


@MANY
@given(completions(), SHARES, st.sampled_from(Schedule), BASES)
def test_no_advantage_stays_none_and_the_unjudged_keep_theirs(
    item: Credited, threshold: float, schedule: str, base: float
) -> None:
    options = {"threshold": threshold, "schedule": schedule, "base": base}
    nothing = shape(replace(item, advantage=-0.0), **options)
    assert nothing == [0.0] * item.num_tokens
    assert not any(map(is_negative_zero, nothing))
    assert shape(item, verdicts=None, **options) == [item.advantage] * item.num_tokens


CREDIT = st.builds(
    AlgorithmConfig,
    schedule=st.sampled_from(Schedule),
    base=BASES,
    threshold=SHARES,
    credit_temperature=st.sampled_from([0.0, 0.1, 1.0]),
)


@SOME
@given(st.lists(completions(), max_size=6), CREDIT, st.sampled_from([0.0, 0.5, 1.0]), st.randoms())
@pytest.mark.parametrize("shaping", list(SHAPINGS))
def test_completions_take_their_tokens_advantages_with_them(
    shaping: Shaping, group: list[Credited], config: AlgorithmConfig, process_weight: float, random: Random
) -> None:
    order = list(range(len(group)))
    random.shuffle(order)
    straight = SHAPINGS[shaping](group, config, process_weight)
    shuffled = SHAPINGS[shaping]([group[index] for index in order], config, process_weight)
    assert [len(row) for row in straight] == [item.num_tokens for item in group]
    for index, row in zip(order, shuffled, strict=True):
        assert row == pytest.approx(straight[index], rel=1e-9, abs=1e-9)
    for item, row in zip(group, straight, strict=True):
        last = item.spans[-1][1] if item.spans and item.verdicts else 0
        assert row[last:] == [item.advantage] * (item.num_tokens - last)  # no step from there on
        assert not any(map(is_negative_zero, row)) or is_negative_zero(item.advantage)


@st.composite
def judged_batches(draw: st.DrawFn) -> list[Trace]:
    """Groups of four with answers, steps, verdicts and failed judgements of any kind."""
    traces = []
    for number in range(draw(st.integers(1, 3))):
        rationale = draw(st.sampled_from(["It is left.", None]))
        for sample in range(GROUP):
            example = make_example(number, rationale=rationale)
            verdicts = draw(st.lists(st.booleans(), max_size=6))
            steps = [TRUTHS[k % len(TRUTHS)] for k in range(len(verdicts))]
            completion = make_completion(example, steps, draw(st.sampled_from(["left", None])), sample_index=sample)
            outcome = verdicts if draw(st.integers(0, 9)) else FailureReason.TIMEOUT
            judged = verdicts and rationale is not None
            traces.append(
                Trace(
                    example=example,
                    completion=completion,
                    judgement=make_judgement(completion, outcome) if judged else None,
                    answer_reward=draw(st.sampled_from([0.0, 0.5, 0.6, 1.0])),
                )
            )
    return traces


@SOME
@given(
    judged_batches(),
    st.sampled_from(AdvantageKind),
    st.sampled_from([JudgeFailurePolicy.EXCLUDE, JudgeFailurePolicy.ANSWER_ONLY]),
    st.sampled_from([0.0, 1.0]),
)
def test_schedule_none_is_the_base_algorithm_to_the_bit(
    traces: list[Trace], advantage: AdvantageKind, on_failure: JudgeFailurePolicy, process_weight: float
) -> None:
    base, none = (
        score_group_batch(
            traces,
            group_size=GROUP,
            algorithm=algorithm,
            reward=RewardConfig(process_weight=process_weight),
            on_failure=on_failure,
        )
        for algorithm in (
            AlgorithmConfig(advantage=advantage, shaping=Shaping.NONE),
            AlgorithmConfig(advantage=advantage, shaping=Shaping.MRPO, schedule=Schedule.NONE),
        )
    )
    assert repr(base) == repr(none)  # repr tells every float to the bit, −0.0 too
    for item in base.traces:
        assert item.token_advantages == [item.advantage] * len(item.trace.completion.completion_token_ids)


@SOME
@given(judged_batches(), st.sampled_from(AdvantageKind))
def test_a_right_answer_and_an_unjudged_one_keep_their_advantage(traces: list[Trace], advantage: AdvantageKind) -> None:
    scored = score_group_batch(
        traces,
        group_size=GROUP,
        algorithm=AlgorithmConfig(advantage=advantage),
        reward=RewardConfig(),
        on_failure=JudgeFailurePolicy.ANSWER_ONLY,
    )
    for item in scored.traces:
        failed = item.trace.judgement is None or item.verdicts_used is None
        if failed or item.trace.answer_reward == 1.0:
            assert item.token_advantages == [item.advantage] * len(item.token_advantages)
