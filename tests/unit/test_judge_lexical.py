"""The judge that compares words: what it can tell apart, and that it stays a choice for any data."""

from __future__ import annotations

import pytest

from judge.lexical import LexicalJudge
from mrpo.choices import JudgeKind
from mrpo.compose import compose_config
from mrpo.config import LexicalConfig

JUDGE = LexicalJudge(LexicalConfig())
RATIONALE = (
    "This is a frontal chest radiograph. There is a dense opacity in the right lower lobe. "
    "The left lung is clear. The heart size is normal. These findings suggest right lower lobe pneumonia."
)
GOLD = "right lower lobe pneumonia"


def marks(*steps: str, answer: str = GOLD, rationale: str = RATIONALE) -> list[tuple[bool, bool]]:
    """(alignment, contribution) of each step."""
    verdicts = JUDGE.rule_steps(steps, question="What is the diagnosis?", answer=answer, rationale=rationale)
    return list(zip(verdicts.alignment, verdicts.contribution, strict=True))


def is_correct(generated: str, answer: str) -> bool:
    return JUDGE.rule_answer(generated, question="?", answer=answer)


@pytest.mark.parametrize(
    ("step", "mark"),
    [
        ("This is a frontal chest radiograph.", (True, False)),
        ("Dense opacities are in the right lower lobe.", (True, True)),  # 5 of 5 words by their stems
        ("The left lung is clear.", (True, False)),
        ("Dense opacity in the left lower lobe.", (False, False)),  # all its words occur, but only on the right
        ("The finding suggests pneumonia.", (True, True)),
        ("The liver holds a cyst.", (False, False)),
        ("It may be pneumonia of a viral or fungal kind.", (False, True)),  # 1 of 4 words, but the gold answer's
        ("Let me think about this.", (False, False)),
        ("?!", (False, False)),
        ("", (False, False)),
    ],
)
def test_a_step_is_marked_by_the_words_it_shares(step: str, mark: tuple[bool, bool]) -> None:
    assert marks(step) == [mark]


def test_a_step_that_repeats_an_earlier_one_gets_nothing() -> None:
    assert marks("The left lung is clear.", "The heart size is normal.", "the left lung IS clear") == [
        (True, False),
        (True, False),
        (False, False),
    ]


def test_number_words_are_digits() -> None:
    assert marks("There are 2 nodules.", answer="two", rationale="There are two nodules.") == [(True, True)]


def test_the_threshold_is_the_share_of_words_held() -> None:
    """Opacity and lobe occur, and middle, tiny and cavity do not: 2 of 5."""
    step = "A tiny cavity, an opacity, the middle lobe."
    for threshold, aligned in ((0.4, True), (0.41, False)):
        judge = LexicalJudge(LexicalConfig(min_step_overlap=threshold))
        verdicts = judge.rule_steps([step], question="?", answer="edema", rationale=RATIONALE)
        assert verdicts.alignment == [aligned]


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        ("Pneumonia.", "pneumonia"),
        ("two", "2"),
        ("1/2", "0.5"),
        ("right-sided pneumonia of the lower lobe", "right sided lower lobe pneumonia"),
        ("pleural effusions", "pleural effusion"),
        ("the chest x-ray shows pleural effusion", "chest x-ray showing pleural effusion"),
    ],
)
def test_near_answers_are_correct(generated: str, answer: str) -> None:
    assert is_correct(generated, answer)


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        ("left lower lobe pneumonia", "right lower lobe pneumonia"),
        ("right upper lobe pneumonia", "right lower lobe pneumonia"),
        ("left or right lower lobe pneumonia", "right lower lobe pneumonia"),
        ("no evidence of acute pleural effusion", "evidence of acute pleural effusion"),  # F1 0.89 without the negation
        ("3 round nodules in the right lung", "2 round nodules in the right lung"),  # F1 0.8
        ("type b influenza virus", "type a influenza virus"),
        ("pneumonia", "right lower lobe pneumonia"),
        ("pneumonia or edema or cancer", "pneumonia"),
        ("the", "a"),
        ("?", "pneumonia"),
    ],
)
def test_other_answers_are_not(generated: str, answer: str) -> None:
    assert not is_correct(generated, answer)


def test_the_answers_threshold_is_a_word_f1() -> None:
    """Two of three words shared with two of two: F1 = 2·2 / (3 + 2) = 0.8."""
    assert is_correct("small pleural effusion", "pleural effusion")
    strict = LexicalJudge(LexicalConfig(min_answer_f1=0.81))
    assert not strict.rule_answer("small pleural effusion", question="?", answer="pleural effusion")


@pytest.mark.parametrize("data", [["data=phantom"], ["data=vqa_rad", "data.root=/data"]])
def test_it_may_judge_any_data(data: list[str]) -> None:
    config = compose_config(["judge=lexical", "judge.lexical.min_answer_f1=0.7", *data])
    assert config.judge.kind == JudgeKind.LEXICAL
    assert config.judge.lexical == LexicalConfig(min_answer_f1=0.7)
