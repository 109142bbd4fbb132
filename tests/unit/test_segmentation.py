"""The corpus of hand-cut reasoning texts: every text is cut where a radiologist would cut it, and its tokens follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import ByteLevelBPETokenizer

from mrpo.steps import extract_answer, offsets_from_pieces, segment, split_steps, think_token_counts, token_spans
from rollout.vocabulary import byte_alphabet

CORPUS = Path(__file__).parents[1] / "golden" / "segmentation.jsonl"
CASES: list[dict[str, Any]] = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
CATEGORIES = {
    "abbreviations",
    "bullet_lists",
    "cjk_and_other_scripts",
    "colons_and_semicolons",
    "decimals",
    "dotted_drug_orders",
    "ellipses",
    "empty",
    "initials",
    "latin_names",
    "list_numbering",
    "markdown",
    "nested_tags",
    "newlines",
    "no_space_after_stop",
    "no_tags",
    "number_or_lower_case_start",
    "parentheses",
    "pathology_stains",
    "question_and_exclamation",
    "quotes",
    "radiology_codes",
    "several_blocks",
    "times_and_dates",
    "unclosed_tags",
    "unicode",
    "units",
    "upper_case_tags",
    "urls_and_filenames",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_texts_are_cut_as_by_hand(case: dict[str, Any]) -> None:
    text = case["text"]
    steps = split_steps(text, think_tag=case["think_tag"])
    assert all(text[step.start : step.end] == step.text for step in steps)
    exact = [step.text for step in steps] == case["steps"]
    # A text the rules are known to miss stays in the corpus; once it is cut right, its mark has to go.
    assert exact is not case.get("known_miss", False), [step.text for step in steps]


def test_the_corpus_is_broad_and_hardly_anything_in_it_is_missed() -> None:
    assert len(CASES) >= 160
    assert {case["category"] for case in CASES} == CATEGORIES
    assert len({case["id"] for case in CASES}) == len({case["text"] for case in CASES}) == len(CASES)
    missed = [case["id"] for case in CASES if case.get("known_miss", False)]
    assert len(missed) < 0.03 * len(CASES), missed


@pytest.fixture(scope="module")
def tokenizer() -> ByteLevelBPETokenizer:
    """Trained on a third of the corpus, so that the rest falls into small pieces, tags and characters included."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([case["text"] for case in CASES[::3]], vocab_size=1200, show_progress=False)
    return tokenizer


def pieces_of(tokenizer: ByteLevelBPETokenizer, text: str) -> list[bytes]:
    """The bytes of a text's tokens."""
    byte_of_char = {char: byte for byte, char in byte_alphabet().items()}
    return [bytes(byte_of_char[char] for char in token) for token in tokenizer.encode(text).tokens]


@pytest.mark.parametrize("strategy", ["sentence", "fixed_tokens:5"])
def test_hardly_a_token_of_a_well_formed_text_is_in_no_step(tokenizer: ByteLevelBPETokenizer, strategy: str) -> None:
    well_formed = [case for case in CASES if case["text"].startswith("<think>") and case["steps"]]
    assert len(well_formed) > 250
    for case in well_formed:
        text, offsets = offsets_from_pieces(pieces_of(tokenizer, case["text"]))
        assert text == case["text"]
        found = segment(text, offsets, think_tag="think", strategy=strategy)
        assert found.step_tokens > 0.95 * found.think_tokens > 0, case["id"]
        touched = [
            k
            for step, (first, stop) in zip(found.steps, found.spans, strict=True)
            for k in range(first, stop)
            if offsets[k][0] >= step.end or offsets[k][1] <= step.start
        ]
        assert touched == [], case["id"]  # only tokens that overlap the step


@pytest.mark.parametrize("strategy", ["sentence", "fixed_tokens:5"])
def test_one_pass_finds_what_the_single_functions_find(tokenizer: ByteLevelBPETokenizer, strategy: str) -> None:
    for case in CASES:
        text, offsets = offsets_from_pieces(pieces_of(tokenizer, case["text"]))
        tag = case["think_tag"]
        found = segment(text, offsets, think_tag=tag, strategy=strategy)
        assert found.steps == split_steps(text, think_tag=tag, strategy=strategy, offsets=offsets)
        assert found.spans == token_spans(found.steps, offsets)
        assert found.answer == extract_answer(text, think_tag=tag)
        assert (found.think_tokens, found.step_tokens) == think_token_counts(text, found.steps, offsets, tag)
