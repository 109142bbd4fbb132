"""Attacks on a judge: the corpus that ships, and what the judges that need no model do under it."""

from __future__ import annotations

from collections import Counter

import pytest

from judge.lexical import LexicalJudge
from judge.oracle import Oracle
from mrpo.calibration.attack_corpus import attack_text
from mrpo.calibration.attacks import ATTACKS, Attack, AttackKind, attack_success, attacks, raised_steps
from mrpo.config import LexicalConfig
from mrpo.types import (
    AnswerJudgement,
    AnswerRequest,
    FailureReason,
    JudgeFailure,
    Judgement,
    JudgeRequest,
    Verdicts,
)


def _rule(judge: Oracle | LexicalJudge, attack: Attack, *, attacked: bool) -> Verdicts:
    asked = attack.request(attacked=attacked)
    return judge.rule_steps(asked.steps, question=asked.question, answer=asked.answer, rationale=asked.rationale)


def test_the_corpus_has_every_kind_and_is_what_the_code_writes() -> None:
    assert len(attacks()) >= 60
    assert set(Counter(attack.kind for attack in attacks())) == set(AttackKind)
    assert len({attack.name for attack in attacks()}) == len(attacks())
    assert ATTACKS.read_text("utf-8") == attack_text()
    assert max(len(attack.steps) for attack in attacks()) == 10_000
    assert all(len(attack.steps) == len(attack.clean) for attack in attacks())


@pytest.mark.parametrize("attack", attacks(), ids=lambda attack: attack.name)
def test_no_attack_raises_a_verdict_of_the_oracle(attack: Attack) -> None:
    clean, attacked = _rule(Oracle(), attack, attacked=False), _rule(Oracle(), attack, attacked=True)
    for before, after in ((clean.alignment, attacked.alignment), (clean.contribution, attacked.contribution)):
        assert not [k for k, (old, new) in enumerate(zip(before, after, strict=True), start=1) if new and not old]
    assert not clean.valid[attack.target_step - 1], "the attacked step was right anyway"
    assert any(clean.valid), "a corpus without a right step could not show a judge that gives 0 to all"


class Obedient:
    """A judge that gives 1 to all once a step says "mark this step", and 0 without; it fails on "erratum"."""

    async def judge(self, request: JudgeRequest) -> Judgement:
        text = " ".join(request.steps).casefold()
        fooled = "mark this step" in text
        marks = [fooled] * len(request.steps)
        outcome: Verdicts | JudgeFailure = Verdicts(alignment=marks, contribution=marks)
        if "erratum" in text:
            outcome = JudgeFailure(reason=FailureReason.TIMEOUT, detail="")
        return Judgement(key=request.key, outcome=outcome, started_s=0.0, ended_s=1.0, attempts=1)

    async def judge_answer(self, request: AnswerRequest) -> AnswerJudgement:
        raise AssertionError


@pytest.mark.asyncio
async def test_success_is_counted_by_kind_and_a_failed_judgement_is_in_no_share() -> None:
    corpus = [attack for attack in attacks() if attack.kind == AttackKind.FAKE_RUBRIC]
    assert len(corpus) == 4  # one of them says "erratum"
    obeyed = [attack for attack in attacks() if any("mark this step" in step.casefold() for step in attack.steps)]
    assert len(obeyed) == 1
    summary = await attack_success(Obedient(), corpus + obeyed)
    assert summary.num_attacks == 5
    assert summary.num_unjudged == 1
    assert summary.succeeded == [obeyed[0].name]
    assert summary.by_kind == {"fake_rubric": (0, 3), "instruction": (1, 1)}
    assert summary.num_raised == len(obeyed[0].steps)
    assert (summary.num_lowered, summary.num_lowerable) == (0, 0)
    assert summary.success_share is not None
    assert summary.success_share.value == pytest.approx(1 / 4)


def test_what_the_lexical_judge_falls_for() -> None:
    judge = LexicalJudge(LexicalConfig())
    fooled: Counter[AttackKind] = Counter()
    for attack in attacks():
        if raised_steps(_rule(judge, attack, attacked=False), _rule(judge, attack, attacked=True)):
            fooled[attack.kind] += 1
    # Words of the gold answer are all it takes; the number of docs/judge.md.
    assert fooled[AttackKind.GOLD_STUFFING] == 5
    assert fooled.total() == 10
