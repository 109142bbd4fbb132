"""Steps with known verdicts beside the real ones: what they say, how they are counted, and when there is an alarm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from judge.lexical import LexicalJudge
from judge.oracle import Oracle
from mrpo.config import JudgeConfig, LexicalConfig
from mrpo.judge_canaries import LEAST, CanaryJudge, CanaryWatch, canaries_text, canary_of
from mrpo.phantom.language import Belief, QuestionKind, write_answer, write_steps
from mrpo.types import (
    AnswerJudgement,
    AnswerRequest,
    FailureReason,
    JudgeDepths,
    JudgeFailure,
    Judgement,
    JudgeRequest,
    Verdicts,
)

TRUTH = Belief(modality="CT", organ="liver", side="left", half="upper", num_lesions=2, marker=False)
Rule = Callable[[JudgeRequest], Verdicts | JudgeFailure]


def phantom(key: str = "p#0") -> JudgeRequest:
    return JudgeRequest(
        key=key,
        image="",
        question=QuestionKind.SIDE.value,
        answer=write_answer(QuestionKind.SIDE, TRUTH),
        rationale=" ".join(write_steps(TRUTH)),
        steps=["The modality is CT."],
    )


def ward(rationale: str) -> JudgeRequest:
    return JudgeRequest(key="w#0", image="", question="What is seen?", answer="mass", rationale=rationale, steps=["x"])


def ones(request: JudgeRequest) -> Verdicts:
    return Verdicts(alignment=[True] * len(request.steps), contribution=[True] * len(request.steps))


def oracle(request: JudgeRequest) -> Verdicts:
    asked = {"question": request.question, "answer": request.answer, "rationale": request.rationale}
    return Oracle().rule_steps(request.steps, **asked)


@dataclass
class Judge:
    """Rules by a function, and remembers who asked how."""

    rule: Rule
    asked: list[str] = field(default_factory=list)
    afresh: list[str] = field(default_factory=list)

    async def judge(self, request: JudgeRequest) -> Judgement:
        self.asked.append(request.key)
        return Judgement(key=request.key, outcome=self.rule(request), started_s=0.0, ended_s=1.0, attempts=1)

    async def judge_afresh(self, request: JudgeRequest) -> Judgement:
        self.afresh.append(request.key)
        return Judgement(key=request.key, outcome=self.rule(request), started_s=0.0, ended_s=1.0, attempts=1)

    async def judge_answer(self, request: AnswerRequest) -> AnswerJudgement:
        raise AssertionError("no answer is asked about")

    def take_metrics(self) -> dict[str, float]:
        return {"judge/outage_s": 1.0}

    def depths(self) -> JudgeDepths:
        return JudgeDepths(waiting=1, in_flight=2)

    def status(self) -> str | None:
        return "out"


def watched(judge: Judge, events: list[str], **shares: float) -> CanaryJudge:
    return CanaryJudge(judge, JudgeConfig(**shares), seed=3, on_event=events.append)  # type: ignore[arg-type]


async def ask(judge: CanaryJudge, number: int) -> list[Judgement]:
    found = await asyncio.gather(*(judge.judge(phantom(f"p{n}#0")) for n in range(number)))
    await asyncio.sleep(0.01)
    return found


def test_on_phantom_data_every_verdict_of_a_canary_is_known_and_exact() -> None:
    canary = canary_of(phantom())
    assert canary is not None
    assert canary.request.steps[:4] == [*write_steps(TRUTH)[:3], "The right liver is abnormal."]
    assert canary.request.steps[4] == write_steps(TRUTH)[0]
    assert canary.alignment == [True, True, True, False, False, False]
    assert canary.contribution == [False, False, True, False, False, False]
    assert not any(canary.wrong(oracle(canary.request)))


def test_on_other_data_only_what_the_rubric_decides_is_known() -> None:
    canary = canary_of(ward("Axial CT of the chest. A mass in the left upper lobe."))
    assert canary is not None
    assert canary.request.steps[:4] == [
        "Axial CT of the chest.",
        "A mass in the left upper lobe.",
        "A mass in the right upper lobe.",
        "Axial CT of the chest.",
    ]
    assert canary.alignment == [True, True, False, False, False]
    assert canary.contribution == [None, None, None, False, False]
    lexical = LexicalJudge(LexicalConfig()).rule_steps(
        canary.request.steps, question="", answer="mass", rationale=canary.request.rationale
    )
    assert not any(canary.wrong(lexical))
    assert canary.wrong(ones(canary.request)) == [False, False, True, True, True]


@pytest.mark.parametrize("question", QuestionKind)
def test_a_question_that_phantoms_ask_too_is_ordinary_on_other_data(question: QuestionKind) -> None:
    canary = canary_of(replace(ward("The chest X-ray shows an effusion."), question=question.value))
    assert canary is not None
    assert canary.alignment == [True, False, False]
    assert canary.contribution == [None, False, False]


def test_a_rationale_of_both_sides_turns_nothing_and_an_empty_one_has_no_canary() -> None:
    both = canary_of(ward("The left lung is clear. The right lung is not."))
    assert both is not None
    assert both.alignment == [True, True, False, False]
    assert canary_of(ward("")) is None


@pytest.mark.asyncio
async def test_canaries_are_requests_of_their_own_at_the_set_share() -> None:
    judge, events = Judge(oracle), []
    ruled = await ask(watched(judge, events, canary_share=0.25), 400)
    assert [item.key for item in ruled] == [f"p{n}#0" for n in range(400)]
    assert all(item.outcome == oracle(phantom()) for item in ruled)  # nothing of a canary is in what is rewarded
    assert judge.asked == [f"p{n}#0" for n in range(400)]
    assert 70 <= len(judge.afresh) <= 130
    again = Judge(oracle)
    await ask(watched(again, events, canary_share=0.25), 400)
    assert again.afresh == judge.afresh  # a resumed run sends the same ones
    assert events == []


@pytest.mark.asyncio
async def test_the_error_rate_is_of_steps_and_of_this_training_step() -> None:
    judge, events = Judge(ones), []
    canaries = watched(judge, events, canary_share=1.0)
    await ask(canaries, 2)
    # Of six steps the first two contribute nothing, the last three get no mark: five are wrong.
    assert canaries.take_metrics() == {
        "judge/outage_s": 1.0,
        "judge/canary_steps": 12.0,
        "judge/canary_error_rate": pytest.approx(10 / 12),
    }
    assert canaries.take_metrics() == {"judge/outage_s": 1.0}


@pytest.mark.asyncio
async def test_a_canary_without_a_ruling_is_no_error() -> None:
    judge, events = Judge(lambda _: JudgeFailure(reason=FailureReason.TIMEOUT)), []
    canaries = watched(judge, events, canary_share=1.0)
    await ask(canaries, 50)
    assert canaries.take_metrics() == {"judge/outage_s": 1.0, "judge/canary_failures": 50.0}
    assert events == []


@pytest.mark.asyncio
async def test_a_fault_under_a_canary_is_counted_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: JudgeRequest) -> Verdicts:
        if request.key.endswith("/canary"):
            raise RuntimeError("a bug of an actor")
        return oracle(request)

    canaries = watched(Judge(broken), [], canary_share=1.0)
    assert len(await ask(canaries, 3)) == 3
    assert canaries.take_metrics()["judge/canary_failures"] == 3.0
    assert "a canary ended with RuntimeError: a bug of an actor" in caplog.text


def test_the_alarm_is_told_once_and_its_end_once() -> None:
    events: list[str] = []
    watch = CanaryWatch(alarm_share=0.2, on_event=events.append)
    for _ in range(LEAST // 2 - 1):
        watch.add([True, False])
    assert events == []  # too few to say
    for _ in range(10):
        watch.add([True, False])
    assert len(events) == 1
    assert events[0].startswith("judge canaries: 10 of the last 20 steps with known verdicts were ruled wrong, above")
    for _ in range(200):
        watch.add([False, False])
    assert len(events) == 2
    assert "the alarm is over" in events[1]


@pytest.mark.parametrize(
    ("steps", "wrong", "failures", "text"),
    [
        (0, 0, 0, ""),
        (1200, 3, 0, "3 of 1,200 (0.2%)"),
        (8, 6, 1, "6 of 8 (75.0%), 1 canary without a ruling"),
        (0, 0, 2, "2 canaries without a ruling"),
    ],
)
def test_what_canaries_came_to_in_words(steps: int, wrong: int, failures: int, text: str) -> None:
    watch = CanaryWatch(alarm_share=1.0, on_event=[].append)
    if steps:
        watch.add([True] * wrong + [False] * (steps - wrong))
    for _ in range(failures):
        watch.add_failure()
    assert canaries_text(watch.take_metrics()) == text


@pytest.mark.asyncio
async def test_the_end_of_a_job_waits_for_open_canaries() -> None:
    class Late(Judge):
        async def judge_afresh(self, request: JudgeRequest) -> Judgement:
            await asyncio.sleep(0.05)
            return await super().judge_afresh(request)

    canaries = watched(Late(oracle), [], canary_share=1.0)
    await ask(canaries, 3)
    assert canaries.num_open == 3
    await canaries.finished()
    assert (canaries.num_open, canaries.take_metrics()["judge/canary_error_rate"]) == (0, 0.0)


@pytest.mark.asyncio
async def test_closing_gives_open_canaries_up() -> None:
    class Slow(Judge):
        async def judge_afresh(self, request: JudgeRequest) -> Judgement:
            await asyncio.sleep(60)
            raise AssertionError

    canaries = watched(Slow(oracle), [], canary_share=1.0)
    await ask(canaries, 3)
    await asyncio.wait_for(canaries.close(), 1.0)
    assert canaries.take_metrics() == {"judge/outage_s": 1.0}
