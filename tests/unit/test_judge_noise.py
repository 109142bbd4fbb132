"""Flipped verdicts: what becomes of each kind, how many, and that they repeat."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo.judge_noise import add_judge_noise
from mrpo.scoring import Trace
from mrpo.types import FailureReason, JudgeFailure, Verdicts
from tests.unit.synthetic_run import make_completion, make_example, make_record
from tests.unit.test_controller import make_world, with_config


def trace_of(number: int, outcome: list[bool] | FailureReason | None, sample_index: int = 0) -> Trace:
    record = make_record(number, outcome, correct=False, sample_index=sample_index)
    return Trace(example=record.example, completion=record.completion, judgement=record.judgement, answer_reward=0.0)


def valid_of(trace: Trace) -> list[bool]:
    assert trace.judgement is not None
    assert isinstance(trace.judgement.outcome, Verdicts)
    return trace.judgement.outcome.valid


def many(num: int = 500) -> list[Trace]:
    return [trace_of(number, [number % 2 == 0, True, False, number % 3 == 0]) for number in range(num)]


def flips(traces: list[Trace], noisy: list[Trace]) -> set[tuple[str, int]]:
    return {
        (old.completion.key, index)
        for old, new in zip(traces, noisy, strict=True)
        for index, (before, after) in enumerate(zip(valid_of(old), valid_of(new), strict=True))
        if before != after
    }


def test_no_noise_gives_back_the_same_traces_and_no_measure() -> None:
    traces = many(3)
    noisy = add_judge_noise(traces, probability=0.0, seed=0, step=0)
    assert all(new is old for new, old in zip(noisy.traces, traces, strict=True))
    assert noisy.metrics() == {}


def test_full_noise_turns_each_verdict_round_whatever_made_it_valid() -> None:
    trace = trace_of(0, [True, True, True, False])
    assert trace.judgement is not None
    mixed = Verdicts(alignment=[True, True, False, False], contribution=[True, False, True, False])
    trace = replace(trace, judgement=replace(trace.judgement, outcome=mixed))
    noisy = add_judge_noise([trace], probability=1.0, seed=0, step=0)
    (judgement,) = [item.judgement for item in noisy.traces]
    assert judgement is not None
    assert judgement.outcome == Verdicts(alignment=[False, False, False, True], contribution=[False] * 3 + [True])
    assert judgement.attempts == trace.judgement.attempts
    assert noisy.metrics() == {"judge/flipped_share": 1.0}


def test_failures_and_unjudged_completions_are_left_alone_and_not_counted() -> None:
    bare = make_completion(make_example(2), [], "left")
    traces = [
        trace_of(0, FailureReason.TIMEOUT),
        trace_of(1, None),
        Trace(example=make_example(2), completion=bare, judgement=None, answer_reward=0.0),
    ]
    noisy = add_judge_noise(traces, probability=1.0, seed=0, step=0)
    assert noisy.traces == traces
    assert noisy.flipped_share is None
    with_one = add_judge_noise([*traces, trace_of(3, [True, False])], probability=1.0, seed=0, step=0)
    assert with_one.flipped_share == 1.0
    assert isinstance(with_one.traces[0].judgement and with_one.traces[0].judgement.outcome, JudgeFailure)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_as_many_flip_as_asked_among_valid_and_invalid_alike(probability: float) -> None:
    traces = many()
    noisy = add_judge_noise(traces, probability=probability, seed=3, step=7)
    flipped = flips(traces, noisy.traces)
    assert noisy.flipped_share == len(flipped) / 2000
    for validity in (True, False):
        places = {
            (trace.completion.key, index)
            for trace in traces
            for index, valid in enumerate(valid_of(trace))
            if valid == validity
        }
        share = len(flipped & places) / len(places)
        # four standard deviations of a binomial share
        assert abs(share - probability) < 4 * (probability * (1 - probability) / len(places)) ** 0.5


def test_flips_follow_from_seed_step_completion_and_place_alone() -> None:
    traces = many(60)

    def flipped(seed: int = 0, step: int = 0, order: list[Trace] = traces) -> set[tuple[str, int]]:
        return flips(order, add_judge_noise(order, probability=0.3, seed=seed, step=step).traces)

    assert flipped() == flipped(order=traces[::-1])  # the order of arrival does not matter
    assert flipped() != flipped(seed=1)
    assert flipped() != flipped(step=1)
    by_place = [{key for key, index in flipped() if index == place} for place in range(4)]
    assert len({frozenset(keys) for keys in by_place}) == 4
    other_samples = [trace_of(number, [True] * 4, sample_index=1) for number in range(60)]
    assert {key.replace("#1", "#0") for key, _ in flipped(order=other_samples)} != {key for key, _ in flipped()}


def test_more_noise_flips_what_less_noise_flipped_and_more() -> None:
    traces = many(60)
    few, many_flips = (flips(traces, add_judge_noise(traces, probability=p, seed=0, step=0).traces) for p in (0.1, 0.4))
    assert few < many_flips


def test_training_goes_by_the_noisy_verdicts_and_evaluation_by_the_exact_ones(tmp_path: Path) -> None:
    exact = make_world(tmp_path / "exact", with_config(eval={"before": True, "after": True}))
    noisy = make_world(tmp_path / "noisy", with_config(eval={"before": True, "after": True}, judge={"noise": 1.0}))
    exact.run()
    noisy.run()
    for name in ("before", "after"):
        evaluations = [[record.valid for record in world.recorder.evaluations[name]] for world in (exact, noisy)]
        assert evaluations[0] == evaluations[1]
        assert any(evaluations[0])
    pairs = zip(exact.recorder.rollouts[1], noisy.recorder.rollouts[1], strict=True)
    judged = [(old.trace, new.trace) for old, new in pairs if old.trace.judgement is not None]
    assert judged
    assert all(valid_of(new) == [not valid for valid in valid_of(old)] for old, new in judged)
    assert [exact.recorder.metrics[step].get("judge/flipped_share") for step in (1, 2)] == [None, None]
    assert [noisy.recorder.metrics[step]["judge/flipped_share"] for step in (1, 2)] == [1.0, 1.0]
    assert exact.learner.batches != noisy.learner.batches


def test_a_noisy_run_resumed_at_step_two_flips_as_the_whole_run_did(tmp_path: Path) -> None:
    config = with_config(judge={"noise": 0.4})
    whole, late = make_world(tmp_path / "whole", config), make_world(tmp_path / "late", config, step=1)
    whole.run()
    asyncio.run(late.learner.load(str(checkpoint_of(tmp_path))))
    late.run()
    assert late.recorder.metrics[2]["judge/flipped_share"] == whole.recorder.metrics[2]["judge/flipped_share"]
    assert [item.token_advantages for item in late.recorder.rollouts[2]] == [
        item.token_advantages for item in whole.recorder.rollouts[2]
    ]


def checkpoint_of(folder: Path) -> Path:
    """Weights after one update, as the fake learner saves them."""
    path = folder / "one_update"
    path.mkdir()
    (path / "weights.json").write_text("1")
    return path
