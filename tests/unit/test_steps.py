"""Steps, answers and coverage of a completion's text."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo.errors import ConfigError
from mrpo.steps import extract_answer, split_steps, think_token_counts


def sentences(think: str) -> list[str]:
    return [step.text for step in split_steps(f"<think>{think}</think><answer>x</answer>")]


@pytest.mark.parametrize(
    "sentence",
    [
        "The lesion is approx. 3.5 cm wide.",
        "See Fig. 2 for the margin.",
        "Dr. X reported a mass.",
        "It is dense, i.e. calcified.",
        "There are densities, e.g. stones.",
        "It is a cyst vs. a solid mass.",
        "The signal is low on T1. weighted images.",
        "Lesion No. 3 is the largest.",
        "H. pylori is seen in the gland.",
        "Take 500 mg q.i.d. for a week.",
        "It measures 3 cm. in length and 2.5 mm. in width.",
        "Smith et al. described it.",
        "The nodule (?) in the lung is small.",
        "It was seen (see Fig. 2.) and then again.",
        "The margin is ... unclear.",
        "A node of max. 8 mm is seen.",
        "Findings: 1. nodule, 2. cyst.",
        "The tumour was staged T2. N0. M0 by the team.",
    ],
)
def test_abbreviations_do_not_end_a_sentence(sentence: str) -> None:
    assert sentences(f"{sentence} The next one follows.") == [sentence, "The next one follows."]


@pytest.mark.parametrize(
    ("think", "expected"),
    [
        ("One is here. Two is there! Is three? Four", ["One is here.", "Two is there!", "Is three?", "Four"]),
        ("It measures 3.5 cm. The rest is normal.", ["It measures 3.5 cm.", "The rest is normal."]),
        ("It is dark on T1. The rest is bright.", ["It is dark on T1.", "The rest is bright."]),
        ("Is there a mass? No. The lung is clear.", ["Is there a mass?", "No.", "The lung is clear."]),
        ("It is hepatitis B. Cirrhosis follows.", ["It is hepatitis B.", "Cirrhosis follows."]),
        ("There are stones, cysts, etc. The duct is wide.", ["There are stones, cysts, etc.", "The duct is wide."]),
        ("the liver is normal. the spleen is large.", ["the liver is normal.", "the spleen is large."]),
        ("The liver is normal.The spleen is large.", ["The liver is normal.", "The spleen is large."]),
        ('He said "it is a mass." It is not.', ['He said "it is a mass."', "It is not."]),
        ("1. First this. 2. Then that.", ["1. First this.", "2. Then that."]),
        ("1.\nFirst this\n2.\nThen that", ["1.\nFirst this", "2.\nThen that"]),
        ("Step 1. First this. Step 2. Then that.", ["Step 1. First this.", "Step 2. Then that."]),
        ("**Step 1:**\nFirst this.\n**Step 2:**\nThen that.", ["**Step 1:**\nFirst this.", "**Step 2:**\nThen that."]),
        ("- liver normal\n- spleen large", ["- liver normal", "- spleen large"]),
        ("A line that\nwraps here. Next.", ["A line that\nwraps here.", "Next."]),
        ("A paragraph\n\nand another", ["A paragraph", "and another"]),
        ("病变在左侧。右侧正常。", ["病变在左侧。", "右侧正常。"]),
        ("यह एक है। यह दो है।", ["यह एक है।", "यह दो है।"]),
        ("Die Läsion ist groß. Sie liegt links.", ["Die Läsion ist groß.", "Sie liegt links."]),
        ("Only a fragment", ["Only a fragment"]),
        ("It is a mass. --- It is large.", ["It is a mass.", "--- It is large."]),
        ("It is a mass. ***", ["It is a mass. ***"]),
        ("1.", ["1."]),
        ("...", []),
        (" \n ", []),
        ("", []),
    ],
)
def test_sentences(think: str, expected: list[str]) -> None:
    assert sentences(think) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No tags. At all.", []),
        ("<think>Never closed. At all.", []),
        ("Never opened.</think>", []),
        ("<THINK>One.</Think>", ["One."]),
        ("<think>One.</think> Not this. <think>Two.</think>", ["One.", "Two."]),
        ("<think>One. <answer>left</answer> Hidden.</think>", ["One."]),
        ("<think>One. <think>Two.</think>", ["One.", "<think>Two."]),
        ("<thinking>Another tag.</thinking>", []),
    ],
)
def test_only_closed_think_blocks_count(text: str, expected: list[str]) -> None:
    assert [step.text for step in split_steps(text)] == expected


def test_the_think_tag_is_a_setting() -> None:
    assert [step.text for step in split_steps("<thinking>One.</thinking>", think_tag="thinking")] == ["One."]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>One.</think><answer> left lung </answer>", "left lung"),
        ("<think>One.</think><answer>a</answer><answer>b</answer>", "b"),
        ("<think>One.</think><answer>a</answer><answer>b", "a"),
        ("<answer>a</answer><think>One.</think>", None),
        ("<answer>a</answer>", "a"),
        ("<think>One. <answer>a</answer></think>", "a"),
        ("<think>One. <answer>a</answer></think><ANSWER>b</ANSWER>", "b"),
        ("<think>One.</think><answer>a<answer>b</answer>", "b"),
        ("<think>One.</think><answer></answer>", ""),
        ("<think>One.</think>left", None),
        ("<think>Unclosed <answer>a</answer>", "a"),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_fixed_tokens_cut_every_n_tokens_of_each_block() -> None:
    text = "<think>a b c d e</think>-<think>f g</think>"
    offsets = [(index, index + 1) for index in range(len(text))]
    steps = split_steps(text, strategy="fixed_tokens:4", offsets=offsets)
    assert [step.text for step in steps] == ["a b", "c d", "e", "f g"]
    assert all(text[step.start : step.end] == step.text for step in steps)


@pytest.mark.parametrize("strategy", ["words", "fixed_tokens", "fixed_tokens:0", "fixed_tokens:-1", "fixed_tokens:x"])
def test_unknown_strategies_are_refused(strategy: str) -> None:
    with pytest.raises(ConfigError, match="fixed_tokens:N"):
        split_steps("<think>One.</think>", strategy=strategy, offsets=[])


def test_fixed_tokens_need_offsets() -> None:
    with pytest.raises(ConfigError, match="offsets"):
        split_steps("<think>One.</think>", strategy="fixed_tokens:8")


def test_coverage_counts_what_could_belong_to_a_step() -> None:
    text = "<think>Ab cd.\nEf. --</think><answer>gh</answer>"
    # "<think>", "Ab", " cd", ".", "\n", "Ef", ".", " --", "</think>", "<answer>gh</answer>"
    bounds = [0, 7, 9, 12, 13, 14, 16, 17, 20, 28, len(text)]
    offsets = list(itertools.pairwise(bounds))
    steps = split_steps(text)
    assert [step.text for step in steps] == ["Ab cd.", "Ef. --"]
    assert think_token_counts(text, steps, offsets, "think") == (6, 6)
    assert think_token_counts(text, steps[:1], offsets, "think") == (6, 3)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [
                "<think>",
                "</think>",
                "<answer>",
                "</answer>",
                "T1. ",
                "3.5 cm. ",
                "e.g. ",
                "The mass ",
                "x. ",
                "1. ",
                "\n",
            ]
        )
        | st.text(max_size=8)
    ).map("".join)
)
def test_spans_are_ordered_disjoint_and_exact_for_any_text(text: str) -> None:
    position = 0
    for step in split_steps(text):
        assert position <= step.start < step.end <= len(text)
        assert text[step.start : step.end] == step.text == step.text.strip()
        position = step.end
    answer = extract_answer(text)
    assert answer is None or answer in text


@pytest.mark.parametrize(
    "piece",
    [
        ".",
        " ",
        "\n",
        "a.",
        "! ",
        "(",
        "1. ",
        "<think>",
        "(\n",
        ". ",
        "a\n",
        "A.\n",
        " .",
        "**a**\n",
        "# a\n",
        "- a\n",
        "3 cm. ",
        "«. »",
    ],
)
def test_no_text_takes_more_than_linear_time(piece: str) -> None:
    started = time.process_time()
    split_steps("<think>" + piece * (200_000 // len(piece)) + "</think>")
    assert time.process_time() - started < 5.0  # quadratic would be minutes
