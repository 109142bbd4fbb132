"""Demonstrations as token ids: what the learner trains on, and how long it is before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mrpo.errors import DataError, first_few
from mrpo.families import Family
from mrpo.prompt_tokens import Placeholders, prompt_ids
from mrpo.sft.targets import Demonstration


def target_ids(processor: Any, family: Family, targets: Sequence[str]) -> list[list[int]]:
    """Token ids of whole completions, the end-of-turn token included."""
    end_of_turn = processor.tokenizer.convert_tokens_to_ids(family.end_of_turn)
    if not targets:
        return []
    ids = processor.tokenizer(list(targets), add_special_tokens=False)["input_ids"]
    return [[*row, end_of_turn] for row in ids]


def check_demonstrations(
    demonstrations: Sequence[Demonstration],
    processor: Any,
    family: Family,
    *,
    max_pixels: int,
    terse: bool,
    tokens_per_micro_batch: int,
) -> int:
    """The tokens of the longest demonstration, prompt included; refuses what training would stumble over.

    Raises:
        DataError: a text with a vision or chat-control token, a demonstration longer than a micro-batch, or an
            unreadable image; the message names the rows.
    """
    special = [token.content for token in _added(processor.tokenizer).values() if token.special]
    faults: list[str] = []
    longest = 0
    placeholders = Placeholders(processor, family, max_pixels=max_pixels)
    targets = target_ids(processor, family, [item.sample.target for item in demonstrations])
    for item, target in zip(demonstrations, targets, strict=True):
        sample = item.sample
        found = [token for token in special if token in sample.target or token in sample.question]
        if found:
            raise DataError(
                f"{item.id}: its text holds the special token {found[0]}, which stands for an image or for the form "
                "of a chat; remove it from question, rationale and answer"
            )
        image_ids = None if sample.image is None else placeholders.ids(sample.image)
        num_tokens = len(prompt_ids(processor, family, sample.question, image_ids, terse=terse)) + len(target)
        longest = max(longest, num_tokens)
        if num_tokens > tokens_per_micro_batch:
            faults.append(f"{item.id}: {num_tokens} tokens")
    if faults:
        raise DataError(
            f"longer than learner.tokens_per_micro_batch={tokens_per_micro_batch}: {first_few(faults)}; set it to "
            f"{longest} or more, or lower model.max_pixels"
        )
    return longest


def _added(tokenizer: Any) -> dict[int, Any]:
    """The tokens that a tokenizer holds beside its trained vocabulary, by id."""
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    return added
