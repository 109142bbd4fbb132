"""Rewards of one completion."""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo.choices import AnswerKind
from mrpo.config import AnswerConfig, BertScoreConfig, RewardConfig
from mrpo.errors import ConfigError
from mrpo.rewards import AnswerReward, build_answer_reward, process_reward, step_count_reward
from mrpo.rewards.laterality import laterality_conflict
from mrpo.rewards.normalise import normalise_answer
from mrpo.rewards.symbolic import symbolically_equal


def mixed_config(encoder: str) -> RewardConfig:
    return RewardConfig(answer=AnswerConfig(kind=AnswerKind.MIXED, bertscore=BertScoreConfig(model=encoder)))


@pytest.fixture(scope="module")
def exact() -> AnswerReward:
    return build_answer_reward(RewardConfig(answer=AnswerConfig(kind=AnswerKind.EXACT)))


@pytest.fixture(scope="module")
def mixed() -> AnswerReward:
    return build_answer_reward(RewardConfig(answer=AnswerConfig(kind=AnswerKind.MIXED)))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real BERT of toy size with random weights."""
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "left", "right", "lung", "liver", "mass", "the", "in"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return str(folder)


@pytest.mark.parametrize(
    ("num_steps", "reward"),
    [(0, -1.0), (1, -0.75), (3, -0.25), (4, 0.0), (7, 0.0), (10, 0.0), (11, -0.1), (15, -0.5), (30, -2.0)],
)
def test_step_count_reward(num_steps: int, reward: float) -> None:
    assert step_count_reward(num_steps) == pytest.approx(reward)


def test_step_count_bounds_are_settings() -> None:
    assert step_count_reward(1, minimum=2, maximum=3) == -0.5
    assert step_count_reward(6, minimum=2, maximum=3) == -1.0
    assert step_count_reward(0, minimum=0, maximum=3) == 0.0


def test_process_reward_is_the_share_of_valid_steps() -> None:
    assert process_reward([True, False, True, True]) == 0.75
    assert process_reward([]) == 0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Left Lung", "left  lung."),
        ("The left lung", "left lung"),
        ("A mass in the liver", "mass in liver"),
        ("an opacity", "Opacity"),
        ("two", "2"),
        ("Two lesions", "2 lesions"),
        ("twenty-one", "21"),
        ("twenty one nodes", "21 nodes"),
        ('"pneumonia"', "pneumonia"),
        ("(3)", "three"),
        ("ＣＴ", "CT"),
    ],
)
def test_same_answers(exact: AnswerReward, one: str, other: str) -> None:
    assert exact(one, other) == exact(other, one) == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("left lung", "right lung"),
        ("2", "3"),
        ("-2", "2"),
        ("50%", "50"),
        ("hepatitis A", "hepatitis"),
        ("type A influenza", "type B influenza"),
        ("type A influenza", "type influenza"),
        ("vitamin a", "vitamin"),
        ("someone", "some1"),
        ("", "left"),
        ("", ""),
        ("...", "."),
    ],
)
def test_different_answers(exact: AnswerReward, one: str, other: str) -> None:
    assert exact(one, other) == exact(other, one) == 0.0


@settings(deadline=None)
@given(st.text(max_size=30))
def test_normalisation_ignores_case_and_outer_space(text: str) -> None:
    assert normalise_answer(f"  {text}\n") == normalise_answer(text)
    assert normalise_answer(text.casefold()) == normalise_answer(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3.5 cm", "3.50 cm"),
        ("1/2", "0.5"),
        ("$\\frac{1}{2}$", "0.5"),
        ("50%", "0.5"),
        ("1,000", "1000"),
        ("2 lesions", "2"),
        ("about two lesions", "2"),
        ("The answer is 5", "5"),
        ("3mm", "3 mm"),
    ],
)
def test_equal_quantities(mixed: AnswerReward, one: str, other: str) -> None:
    assert mixed(one, other) == mixed(other, one) == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2 mm", "2 cm"),
        ("grade 2", "stage 2"),
        ("2 to 3", "3"),
        ("2-3", "-1"),
        ("2, 3", "3"),
        ("2 x 3 cm", "3 x 3 cm"),
        ("T2", "2"),
        ("L4-5", "5"),
        ("-2", "2"),
        ("The first shows 7 mm, the second 9 mm, so it is 2 cm", "2"),
        ("left", "left"),
        ("", ""),
    ],
)
def test_what_only_looks_like_an_equal_quantity(one: str, other: str) -> None:
    assert not symbolically_equal(one, other)
    assert not symbolically_equal(other, one)


@pytest.mark.parametrize(
    "bomb", ["9^{9^{9^9}}", "9**9**9", "10^1000000", "99999!", "\\sum_{n=1}^{9}n", "(9^9)^{9^9}", "1" * 63, "{" * 64]
)
def test_costly_answers_are_not_evaluated(mixed: AnswerReward, bomb: str) -> None:
    started = time.process_time()
    assert mixed(bomb, "3") < 1.0
    assert time.process_time() - started < 3.0


def test_the_answer_reward_works_outside_the_main_thread(mixed: AnswerReward) -> None:
    results: list[float] = []
    thread = threading.Thread(target=lambda: results.append(mixed("7/2 cm", "3.5 cm")))
    thread.start()
    thread.join()
    assert results == [1.0]


@pytest.mark.parametrize(
    ("answer", "gold", "conflict"),
    [
        ("left lung", "right lung", True),
        ("Left-sided effusion", "effusion on the right", True),
        ("upper lobe", "lower lobe", True),
        ("left upper lobe", "left lower lobe", True),
        ("LUL", "left lower lobe", True),
        ("RUQ", "right upper quadrant", False),
        ("superior", "inferior", True),
        ("anterior wall", "posterior wall", True),
        ("medial", "lateral", True),
        ("proximal", "distal", True),
        ("bilateral", "left", True),
        ("both lungs", "left lung", True),
        ("left and right", "bilateral", False),
        ("left or right", "left", True),
        ("both margins of the left lobe", "left lobe", False),
        ("lung", "left lung", False),
        ("left lung", "lung", False),
        ("upper left", "left upper", False),
        ("bright", "left", False),
    ],
)
def test_laterality(answer: str, gold: str, conflict: bool) -> None:
    assert laterality_conflict(answer, gold) is conflict
    assert laterality_conflict(gold, answer) is conflict


def test_partial_credit_by_hand(mixed: AnswerReward) -> None:
    # ROUGE-1 stems "lungs": precision 1, recall 2/3, F1 0.8. BLEU-1: "lungs" is no word of the gold answer, so
    # precision 1/2, with the brevity penalty exp(1 − 3/2).
    bleu = 0.5 * math.exp(1 - 3 / 2)
    assert mixed("left lungs", "left lung mass") == pytest.approx(0.5 * 0.8 + 0.5 * bleu)
    assert mixed("spleen", "liver mass") == 0.0


def test_side_conflicts_and_empty_answers_earn_nothing(mixed: AnswerReward) -> None:
    assert mixed("left lung mass", "right lung mass") == 0.0
    assert mixed("", "liver") == mixed(" \n", "liver") == 0.0
    assert mixed("!?", "liver") == 0.0


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_two_texts_score_between_0_and_1(answer: str, gold: str) -> None:
    reward = build_answer_reward(RewardConfig(answer=AnswerConfig(kind=AnswerKind.MIXED)))
    assert 0.0 <= reward(answer, gold) <= 1.0


def test_without_an_encoder_its_weight_moves_loudly(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        reward = build_answer_reward(RewardConfig(answer=AnswerConfig(kind=AnswerKind.MIXED)))
        reward("a mass", "left mass")
        reward("liver", "left mass")
    assert [record.message for record in caplog.records] == [
        "reward.answer.bertscore.model is not set: its weight of 0.5 goes to ROUGE-1 and BLEU-1, half each"
    ]


def test_with_an_encoder_it_has_half_the_weight(encoder: str, mixed: AnswerReward) -> None:
    from bert_score import BERTScorer

    reward = build_answer_reward(mixed_config(encoder))
    f1 = BERTScorer(model_type=encoder, num_layers=2).score(["the mass"], ["liver mass"])[2].item()
    expected = 0.5 * mixed("the mass", "liver mass") + 0.5 * f1
    assert reward("the mass", "liver mass") == pytest.approx(expected, abs=1e-6)
    assert reward("", "liver mass") == 0.0
    assert reward("mass", "") == 0.0


def test_a_missing_encoder_names_the_setting(tmp_path: Path) -> None:
    missing = str(tmp_path / "no_such_encoder")
    with pytest.raises(ConfigError, match=r"reward\.answer\.bertscore\.model=.*no_such_encoder.* cannot be loaded"):
        build_answer_reward(mixed_config(missing))
