"""What a run's judge will cost, by hand-computed numbers; nothing is asked or opened for it."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrpo.compose import compose_config
from mrpo.data.jsonl import write_jsonl
from mrpo.judge_cost.__main__ import configure, main
from mrpo.judge_cost.estimate import RETRY_SHARE, budget_ends, estimate, minutes, money, phases_of
from mrpo.judge_cost.sample import TYPICAL, Sample, sample_rows
from mrpo.judge_cost.tokens import image_tokens, tokens_of
from mrpo.types import AnswerRequest, JudgeRequest

MODEL = ["judge=openai_compatible", "judge.url=http://here/v1", "judge.model=m"]
PRICES = "judge.prices={m:{prompt:2,completion:8,cached_prompt:0.5}}"
SMALL = ["num_steps=10", "rollout.prompts_per_step=2", "rollout.group_size=4", "data.num_train=20", "data.num_test=30"]


def sample_of(**changes: Any) -> Sample:
    sample = Sample(
        rows=[TYPICAL],
        rationale_share=1.0,
        num_test=30,
        test_rationale_share=1.0,
        image_size=(280, 280),
        source="made up",
    )
    return replace(sample, **changes)


def step_request(**changes: Any) -> JudgeRequest:
    request = JudgeRequest(key="k", image="", question="q", answer="a", rationale="r", steps=["A.", "B."])
    return replace(request, **changes)


def calls(*overrides: str, **changes: Any) -> dict[str, tuple[float, float]]:
    config = compose_config([*MODEL, *SMALL, *overrides])
    return {phase.name: (phase.step_calls, phase.answer_calls) for phase in phases_of(config, sample_of(**changes))}


def test_a_call_about_steps_for_each_completion_and_question() -> None:
    assert calls() == {"evaluation before": (30, 0), "training": (80, 0), "evaluation after": (30, 0)}


def test_answers_rated_by_the_judge_are_calls_of_their_own() -> None:
    assert calls("reward.answer.kind=judge", "eval.judge=false") == {
        "evaluation before": (0, 30),
        "training": (80, 80),
        "evaluation after": (0, 30),
    }


def test_evaluations_on_the_way_are_counted_but_the_one_that_the_last_replaces() -> None:
    assert calls("eval.every_steps=5", "eval.num_periodic=8")["evaluations during training"] == (8, 0)
    assert calls("eval.every_steps=5", "eval.after=false", "eval.before=false") == {
        "training": (80, 0),
        "evaluations during training": (60, 0),
    }


def test_a_question_without_a_gold_rationale_has_no_call_about_steps() -> None:
    found = calls("reward.answer.kind=judge", rationale_share=0.25, test_rationale_share=0.5)
    assert found == {"evaluation before": (15, 30), "training": (20, 80), "evaluation after": (15, 30)}


def test_a_prompt_is_counted_by_its_parts() -> None:
    judge = compose_config([*MODEL, "judge_provider=vllm"]).judge
    one = tokens_of(step_request(), judge, image_size=(280, 290))
    assert one.image == image_tokens(280, 290) == 10 * 11
    longer = tokens_of(step_request(question="q" * 401), judge, image_size=(280, 290))
    assert longer.question - one.question == 100
    more = tokens_of(step_request(steps=["A.", "B." * 201]), judge, image_size=(280, 290))
    assert more.own - one.own == 100
    assert one.rubric == longer.rubric == more.rubric > 100
    assert one.reply == 2 * 20
    assert one.prompt == one.rubric + one.question + one.own


def test_the_place_of_the_image_decides_what_repeats() -> None:
    judge = compose_config([*MODEL, "judge_provider=vllm"]).judge
    provider = judge.provider
    last = tokens_of(
        step_request(), replace(judge, provider=replace(provider, image_first=False)), image_size=(280, 280)
    )
    first = tokens_of(
        step_request(), replace(judge, provider=replace(provider, image_first=True)), image_size=(280, 280)
    )
    none = tokens_of(step_request(), replace(judge, send_image=False), image_size=(280, 280))
    assert first.prompt == last.prompt == none.prompt + 100
    assert first.question - last.question == last.own - first.own == 100


def test_a_form_that_travels_costs_and_so_do_thoughts() -> None:
    sizes = {}
    for provider in ("openai", "json_object", "vllm", "openai_reasoning"):
        judge = compose_config([*MODEL, f"judge_provider={provider}"]).judge
        sizes[provider] = tokens_of(step_request(), judge, image_size=(28, 28))
    assert sizes["openai"].own > sizes["json_object"].own > sizes["vllm"].own
    assert sizes["openai_reasoning"].reply > sizes["openai"].reply == 40


def test_totals_and_money_by_hand() -> None:
    config = compose_config([*MODEL, *SMALL, PRICES, "eval.before=false", "eval.after=false"])
    found = estimate(config, sample_of())
    call = found.step_call
    assert call is not None
    assert found.calls == 80
    assert found.requests == pytest.approx(80 * (1 + RETRY_SHARE))
    assert found.expected.prompt == pytest.approx(80 * call.prompt)
    assert found.expected.completion == pytest.approx(80 * call.reply) == 80 * 20 * 6  # six gold sentences
    assert found.expected.cacheable == pytest.approx(80 * call.rubric + 60 * call.question)  # 3 of 4 in a group
    plain = (round(found.expected.prompt) * 2 + found.expected.completion * 8) / 1e6
    assert money(found.expected, config.judge, cached=False) == pytest.approx(plain)
    saved = round(found.expected.cacheable) * 1.5 / 1e6
    assert money(found.expected, config.judge, cached=True) == pytest.approx(plain - saved)
    assert found.most.tokens > found.expected.tokens


def test_several_models_cost_by_their_weights() -> None:
    endpoints = "judge.endpoints=[{url:'http://a/v1',model:a,weight:3},{url:'http://b/v1',model:b,weight:1}]"
    prices = "judge.prices={a:{prompt:1,completion:0},b:{prompt:5,completion:0}}"
    config = compose_config(["judge=openai_compatible", *SMALL, endpoints, prices])
    found = estimate(config, sample_of())
    assert money(found.expected, config.judge, cached=False) == pytest.approx(round(found.expected.prompt) * 2 / 1e6)


def test_minutes_by_each_limit() -> None:
    limits = ["judge.concurrency=5", "judge.requests_per_minute=10", "judge.tokens_per_minute=1000"]
    config = compose_config([*MODEL, *SMALL, *limits])
    found = estimate(config, sample_of())
    by_concurrency, by_requests, by_tokens = minutes(found, config.judge).values()
    assert by_concurrency == pytest.approx((6 + 10 * 2 + 6) * 3 / 60)  # 30 calls, 8 a step, 30: in rounds of 5
    assert by_requests == pytest.approx(140 * 1.02 / 10)
    assert by_tokens == pytest.approx(found.expected.tokens / 1000)


@pytest.mark.parametrize(
    ("limit", "step"),
    [(113, None), (112, 10), (92, 8), (48, 3), (31, 1), (30, 0)],  # 110 calls, 30 before training and 8 a step
)
def test_a_budget_ends_in_the_step_that_it_does_not_cover(limit: int, step: int | None) -> None:
    config = compose_config([*MODEL, *SMALL, f"judge.max_requests={limit}", "eval.after=false"])
    found = estimate(config, sample_of())
    ((setting, share, end),) = budget_ends(found, config)
    assert setting == f"judge.max_requests={limit}"
    assert share == pytest.approx(110 * 1.02 / limit)
    assert end == step


def test_rows_are_read_without_their_images(tmp_path: Path) -> None:
    """Half of the rows have a rationale; images but the first one are not there."""
    Image.new("L", (100, 400)).save(tmp_path / "0.png")
    rows = [
        replace(
            TYPICAL,
            id=str(number),
            image=str(tmp_path / f"{number}.png"),
            rationale=TYPICAL.rationale if number % 2 else None,
        )
        for number in range(200)
    ]
    write_jsonl(rows, tmp_path / "train.jsonl", root=tmp_path)
    write_jsonl(rows[:7], tmp_path / "test.jsonl", root=tmp_path)
    config = compose_config([*MODEL, "data=jsonl", f"data.root={tmp_path}", "data.num_train=null"])
    sample = sample_rows(config, data_is_known=True)
    assert (sample.rationale_share, sample.num_test) == (0.5, 7)
    assert sample.test_rationale_share == pytest.approx(3 / 7)
    assert len(sample.rows) == 64
    assert sample.image_size == (200, 200)


def no_network(*_: Any) -> None:
    raise AssertionError("something was called")


def test_the_command_shows_a_table_and_calls_nobody(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", no_network)
    began = time.process_time()
    arguments = ["experiment=internvl3", "judge.model=m", PRICES, "judge.max_cost=50", "judge.requests_per_minute=500"]
    assert main(arguments) == 0
    assert time.process_time() - began < 10
    shown = capsys.readouterr().out
    for words in ("1,625", "104,000", "107,100 requests", "cost by judge.prices", "judge.requests_per_minute=500"):
        assert words in shown
    assert "judge.max_cost=50: too small, the run needs" in shown
    assert "ASSUMED" in shown


def test_the_command_takes_a_local_judge_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=phantom", "judge.max_requests=100000"]) == 0
    shown = capsys.readouterr().out
    assert "64 phantoms" in shown
    assert "none" in shown
    assert "judge.max_requests=100000: the run takes 10% of it" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judge=none"], "judge.kind=none asks nobody"),
        (["experiment=internvl3", "judge.model=m"], "judge.prices has no m: set its prices per million tokens"),
        (["experiment=internvl3"], "a judge needs judge.url and judge.model"),
        (["experiment=internvl3", "judge.model=m", PRICES, "judge.wrong=1"], "judge.wrong"),
        (["experiment=internvl3", "judge.model=m", PRICES, "data.root=/gone"], "/gone"),
    ],
    ids=["no judge", "no price", "no model", "a typo", "no data"],
)
def test_what_is_missing_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown
    assert "\n" not in shown


def test_a_judge_of_several_endpoints_needs_no_stand_in() -> None:
    endpoints = "judge.endpoints=[{url:'http://a/v1',model:a},{url:'http://b/v1',model:b}]"
    config, stood_in = configure(["experiment=internvl3", endpoints])
    assert [endpoint.model for endpoint in config.judge.endpoints] == ["a", "b"]
    assert stood_in == ["data.root"]


def test_an_answer_is_measured_too() -> None:
    judge = compose_config(MODEL).judge
    request = AnswerRequest(key="k", image="", question="q", answer="a", generated="b")
    assert tokens_of(request, judge, image_size=(28, 28)).reply == 10
