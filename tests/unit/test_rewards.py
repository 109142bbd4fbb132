"""Rewards of one completion."""

from __future__ import annotations

import logging
import math
import re
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo.choices import AnswerKind
from mrpo.config import AnswerConfig, RewardConfig
from mrpo.errors import ConfigError
from mrpo.rewards import AnswerReward, build_answer_reward, process_reward, step_count_reward
from mrpo.rewards.laterality import laterality_conflict
from mrpo.rewards.normalise import normalise_answer, with_digits
from mrpo.rewards.repetition import repeated_ngram_share, repeated_step_share
from mrpo.rewards.symbolic import symbolically_equal
from mrpo.steps import extract_answer


@pytest.fixture(scope="module")
def exact() -> AnswerReward:
    return build_answer_reward(RewardConfig(answer=AnswerConfig(kind=AnswerKind.EXACT)))


@pytest.fixture(scope="module")
def mixed() -> AnswerReward:
    return build_answer_reward(RewardConfig(answer=AnswerConfig(kind=AnswerKind.MIXED)))


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
        ("seventy-nine", "79"),
        ("nineteen", "19"),
        ("one hundred", "100"),
        ("a hundred and five", "105"),
        ("two hundred forty-seven", "247"),
        ("two thousand", "2000"),
        ("three thousand one hundred and twelve", "3112"),
        ("two and a half cm", "2.5 cm"),
        ("two-thirds", "2/3"),
        ("three quarters of the lumen", "3/4 of the lumen"),
        ("one half", "1/2"),
        ("type one diabetes", "type 1 diabetes"),
        ("second rib", "2nd rib"),
        ("the eleventh rib", "11th rib"),
        ("twenty-first week", "21st week"),
        ("twelfth", "12th"),
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
        ("second", "2"),
        ("second rib", "2 rib"),
        ("the third ventricle", "3 ventricle"),
        ("two thirds", "2"),
        ("two three", "5"),
        ("twenty tenth", "30th"),
        ("hundred", "1"),
        ("half", "1/2"),
        ("grade II", "grade 2"),
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
        ("one half", "0.5"),
        ("two and a half cm", "5/2 cm"),
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
        ("2nd", "2"),
        ("third", "3"),
        ("twenty-first", "21"),
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
    "answer",
    [
        *("two", "2.0", "4/2", "2 lesions", "two lesions", "Two (2) lesions", "there are 2", "There are two nodules."),
        *(
            "2 in total",
            "a total of 2",
            "about 2",
            "approx. 2 masses",
            "~2",
            "≈ 2",
            "circa two",
            "exactly 2",
            "It is 2",
        ),
        *("2 lymph nodes", "2 separate metastases are seen", "There are 2 fractures in total", r"$\sqrt{4}$", "1+1"),
    ],
)
def test_what_answers_how_many_with_two(mixed: AnswerReward, answer: str) -> None:
    assert symbolically_equal(answer, "2")
    assert symbolically_equal("2", answer)
    assert mixed(answer, "2") == mixed("2", answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        *("not 2", "no 2", "without 2", "no lesions 2", "2 are not seen", "minus 2", "-2", "neither 2"),
        *("less than 2", "more than 2", "at least 2", "up to 2", "over 2", "almost 2", "2 or more", "2+", "<2", "≥ 2"),
        *("1 < 2", "3 > 2", "x = 2", "3=2", "= 2", "≠2", "≤2", "2 = 2"),
        *(
            "2 cm",
            "2 in",
            "2 mm lesion",
            "2 cm in total",
            r"2 \text{ cm}",
            "2°",
            "2 weeks",
            "2 times",
            "2%",
            "€2",
            "2‰",
        ),
        *(
            "grade 2",
            "lesion 2",
            "left 2",
            "2 left",
            "T2",
            "2nd",
            "2x",
            "No. 2",
            "2 of 3",
            "1 and 2",
            "2/",
            "2 million",
        ),
        *("2a" * 30, "2 " + "a " * 28 + "~", "2 a" + "-." * 28 + "~", r"2\pi"),
        *(r"2\sqrt", r"-^1.5\cdot*2", r"\frac2", r"2\frac", "1)2", "*2 +", r"{2}}\pi"),
    ],
)
def test_what_does_not_answer_how_many_with_two(mixed: AnswerReward, answer: str) -> None:
    assert not symbolically_equal(answer, "2")
    assert not symbolically_equal("2", answer)
    assert max(mixed(answer, "2"), mixed("2", answer)) < 1.0


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("about 2 cm", "2.0 cm", True),
        ("there are 2 lesions in total", "2.0 lesions", True),
        ("less than 2 cm", "less than 2.0 cm", True),
        ("less than 2 cm", "more than 2 cm", False),
        ("not 2 cm", "2 cm", False),
        ("2 lesions", "2.0 nodules", False),
        ("<5", "<5.0", True),
        ("< 5 mm", "<5.0 mm", True),
        ("<5", ">5", False),
        ("<5 mm", "5 mm", False),
        ("2 > 1", "2 > 1.0", False),
        ("3 > 1", "2 > 1", False),
        ("2 = 3", "1 = 3", False),
        ("5 mg/dL", "5.0 mg/dL", True),
        ("5 mg/dL", "5 mg/L", False),
        ("37 °C", "37.0°C", True),
        ("37 °C", "37 °F", False),
        ("3 × 10^9/L", "2 × 10^9/L", False),
        (r"2 \text{cm}", r"2 \text{mm}", False),
        (r"2 \text{cm}", "2.0 cm", True),
        (r"2\pi", r"3\pi", False),
        ("−2", "-2.0", True),
    ],
)
def test_words_and_signs_around_a_number_have_to_agree(one: str, other: str, equal: bool) -> None:
    assert symbolically_equal(one, other) == symbolically_equal(other, one) == equal


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("50%", "50.0 %", True),
        ("50%", "50 percent", True),
        ("50%", "fifty per cent", True),
        (r"50\%", "50%", True),
        ("50%", "0.5", True),
        ("50%", "1/2", True),
        ("50%", r"\frac{1}{2}", True),
        ("about 12.5%", "1/8", True),
        ("100%", "1.0", True),
        ("50% stenosis", "50 percent stenosis", True),
        ("50%", "50", False),
        ("50%", "50.0", False),
        ("0.5%", "0.5", False),
        ("100%", "1", False),
        ("200%", "2 lesions", False),
        ("50%", "60%", False),
        ("50% stenosis", "50 stenosis", False),
        ("50% stenosis", "0.5", False),
        ("1/0%", "0.5", False),
    ],
)
def test_a_percentage_is_a_fraction_and_no_whole_number(one: str, other: str, equal: bool) -> None:
    assert symbolically_equal(one, other) == symbolically_equal(other, one) == equal


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


CONFLICTS = """
left lung | right lung
Left-sided effusion | effusion on the right
left-sided pleural effusion | right-sided pleural effusion
leftsided mass | rightsided mass
lt kidney | rt kidney
Lt. kidney | Rt. kidney
left | right
LEFT LOWER LOBE | RIGHT LOWER LOBE
2 cm left | 2 cm right
two lesions on the left | 2 lesions on the right
L | R
l | r
R lung | L lung
R lung mass | mass of the left lung
R-sided nodule | left-sided nodule
effusion (R) | effusion (L)
upper lobe | lower lobe
left upper lobe | left lower lobe
upper lobe | inferior lobe
top of the image | bottom of the image
uppermost | lowermost
superior | inferior
superior vena cava | inferior vena cava
cranial | caudal
anterior wall | posterior wall
ventral | dorsal
medial | lateral
proximal femur | distal femur
LUL | left lower lobe
RUL | LUL
RUL nodule | right lower lobe nodule
RUQ | RLQ
RUQ pain | left upper quadrant pain
LV dilatation | RV dilatation
LVH | RVH
LBBB | RBBB
LICA stenosis | RICA stenosis
LLE | RLE
bilateral | left
bilateral effusions | right effusion
both lungs | left lung
left and right | left
left or right | left
L/R | R
unilateral | bilateral
unilateral effusion | effusion in both lungs
ipsilateral shift | contralateral shift
OD | OS
OD glaucoma | OS glaucoma
OS | right eye
OU | left eye
od | os
oculus dexter | oculus sinister
dextroscoliosis | levoscoliosis
dextro-scoliosis of the spine | levo-scoliosis of the spine
dextrocardia | levocardia
dextroconvex curvature | laevoconvex curvature
"""
NO_CONFLICTS = """
LUL | left upper lobe
RUQ | right upper quadrant
R lung | right lung
OD | right eye
OU | both eyes
left and right | bilateral
R and L lungs | both lungs
both margins of the left lobe | left lobe
lung | left lung
upper left | left upper
superior segment of the lower lobe | left lower lobe
bright | left
2 L of fluid on the right | right pleural effusion
5 mg/L on the right | right
right side of the L-spine | right side of the lumbar spine
L5 fracture on the right | right L5 fracture
R wave in the left leads | left
grams per os, right | right
CERVICAL OS, RIGHT | right
levofloxacin for the right lung | right lung
dextrose | left
basilar | right
unilateral | left
dextrocardia with left effusion | left effusion
"""


SWAPPED = """
left side larger than the right | right side larger than the left
left > right | right > left
L > R | R > L
R>L | L>R
left > right | left < right
left smaller than right | right smaller than left
from left to right | from right to left
right-to-left shunt | left-to-right shunt
left pleural effusion and right pneumothorax | right pleural effusion and left pneumothorax
left lower lobe and right upper lobe | right lower lobe and left upper lobe
LUL mass, RLL nodule | RUL mass, LLL nodule
Bilateral effusions, larger on the left | Bilateral effusions, larger on the right
upper mass, lower cyst | upper cyst, lower mass
superior to the inferior one | inferior to the superior one
The left is larger. The right is small. | The right is larger. The left is small.
Bilateral effusions, left > right | bilateral effusions, right > left
unilateral rather than bilateral | bilateral rather than unilateral
anterior bigger than posterior | posterior bigger than anterior
"""
NOT_SWAPPED = """
left and right | right and left
left/right | right / left
both | left and right
left, right | right, left
left or right | right or left
left and right lungs | right and left lungs
L/R | R/L
R and L | L & R
left-right asymmetry | right-left asymmetry
left larger than right | right smaller than left
left > right | right < left
L > R | left larger than right
left pleural effusion and right pneumothorax | right pneumothorax and left pleural effusion
left lung clear, right lung hazy | the right lung is hazy and the left lung is clear
left side larger than the right | left larger than right
The left is larger. The right is small. | right small, left larger
left > right | left and right
left hemidiaphragm lower than right | right hemidiaphragm higher than left
bilateral effusions, larger on the left | left and right effusions
LUL and RLL | right lower lobe and left upper lobe
upper and lower lobes | lower and upper lobes
lungs, left and right | lungs: right and left
"""


def pairs_of(table: str) -> list[tuple[str, str]]:
    rows = [line.split(" | ") for line in table.strip().splitlines()]
    return [(one, other) for one, other in rows]


@pytest.mark.parametrize(("one", "other"), pairs_of(CONFLICTS))
def test_another_side_or_height_earns_nothing(mixed: AnswerReward, one: str, other: str) -> None:
    for variant in (str, str.strip, lambda text: f" The {text}.", lambda text: re.sub(" ", "  ", text)):
        assert laterality_conflict(variant(one), variant(other)), (one, other)
        assert mixed(variant(one), variant(other)) == mixed(variant(other), variant(one)) == 0.0


@pytest.mark.parametrize(("one", "other"), pairs_of(SWAPPED))
def test_swapped_ends_earn_nothing(mixed: AnswerReward, one: str, other: str) -> None:
    assert laterality_conflict(one, other)
    assert mixed(one, other) == mixed(other, one) == 0.0


@pytest.mark.parametrize(("one", "other"), pairs_of(NOT_SWAPPED))
def test_ends_may_change_places_where_nothing_hangs_on_it(one: str, other: str) -> None:
    assert not laterality_conflict(one, other)
    assert not laterality_conflict(other, one)


@pytest.mark.parametrize(("one", "other"), pairs_of(NO_CONFLICTS))
def test_no_side_is_found_where_none_is_meant(one: str, other: str) -> None:
    assert not laterality_conflict(one, other)
    assert not laterality_conflict(other, one)


@pytest.mark.parametrize(
    "text", sorted({text for table in (CONFLICTS, SWAPPED, NOT_SWAPPED) for pair in pairs_of(table) for text in pair})
)
def test_an_answer_does_not_contradict_itself(mixed: AnswerReward, text: str) -> None:
    assert mixed(text, text) == mixed(f"{text}.", text) == mixed(text.upper(), text) == 1.0


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


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("left lungs", "left lung mass"),
        ("a large nodule in the liver", "small nodules of the liver, calcified"),
        ("Consolidations; both bases!", "consolidation of the bases"),
        ("mass", "no mass is seen"),
        ("spleen", "liver mass"),
        ("naïve T-cells", "naive T cells"),
    ],
)
def test_partial_credit_is_what_the_libraries_say(mixed: AnswerReward, answer: str, gold: str) -> None:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_score.rouge_scorer import RougeScorer

    rouge = RougeScorer(["rouge1"], use_stemmer=True).score(gold, answer)["rouge1"].fmeasure
    candidate, reference = (re.findall(r"[\w-]+", text.lower()) for text in (answer, gold))
    bleu = sentence_bleu([reference], candidate, weights=(1, 0, 0, 0), smoothing_function=SmoothingFunction().method4)
    assert mixed(answer, gold) == pytest.approx(0.5 * rouge + 0.5 * bleu, abs=1e-12)


def test_number_words_overlap_with_digits(mixed: AnswerReward) -> None:
    # In digits: 2 lesions against 2 large lesions. ROUGE-1 F1 0.8; BLEU-1 precision 1, brevity penalty exp(1 − 3/2).
    expected = 0.5 * 0.8 + 0.5 * math.exp(1 - 3 / 2)
    assert mixed("two lesions", "2 large lesions") == pytest.approx(expected)
    assert mixed("2 lesions", "Two large lesions") == pytest.approx(expected)


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("twonefivhrdaTIİıſ -½\té"), max_size=40))
def test_any_text_can_be_put_in_digits(text: str) -> None:
    again = with_digits(with_digits(text))
    assert again == with_digits(text)


def test_a_number_in_the_reasoning_does_not_win_over_the_answer(mixed: AnswerReward) -> None:
    text = "<think>The mass measures 3.5 cm. It is round.</think><answer>2 cm</answer>"
    assert mixed(extract_answer(text) or "", "3.5 cm") < 1.0
    assert mixed(extract_answer(text) or "", "2.0 cm") == 1.0
    assert mixed(text, "3.5 cm") < 1.0  # nor where the whole completion is looked at


def test_answers_for_a_judge_are_not_rated_here() -> None:
    with pytest.raises(ConfigError, match=r"reward\.answer\.kind=judge"):
        build_answer_reward(RewardConfig(answer=AnswerConfig(kind=AnswerKind.JUDGE)))


def test_repeated_ngrams_by_hand() -> None:
    # Five fours: "a b c d" comes twice, "b c d a", "c d a b" and "d a b c" once.
    assert repeated_ngram_share("A b c d a b c D") == pytest.approx(1 / 5)
    assert repeated_ngram_share("the lung is clear and small") == 0.0
    assert repeated_ngram_share("mass " * 100) == pytest.approx(1 - 1 / 97)
    assert repeated_ngram_share("left lung left lung", n=2) == pytest.approx(1 / 3)
    assert repeated_ngram_share("only three words") is None


def test_repeated_steps_by_hand() -> None:
    steps = [
        "The lung is clear.",
        "2. Lung is clear",
        "There are two nodules.",
        "- There are 2 nodules",
        "So it is left.",
    ]
    assert repeated_step_share(steps) == pytest.approx(2 / 5)
    assert repeated_step_share(["It is left.", "It is right."]) == 0.0
    assert repeated_step_share([]) is None
