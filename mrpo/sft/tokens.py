"""Demonstrations as token ids: what the learner trains on, and how long it is before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import ExifTags, Image

from mrpo.errors import DataError
from mrpo.families import Family
from mrpo.images import read_image
from mrpo.prompts import chat_messages
from mrpo.sft.targets import Demonstration, named

Size = tuple[int, int, int]  # width, height and orientation as stored


class Placeholders:
    """Token ids of images in prompts, by the model's own processor.

    They follow from an image's size, so one image of each size is taken through the processor.
    """

    def __init__(self, processor: Any, family: Family, *, max_pixels: int) -> None:
        self._processor = processor
        self._family = family
        self._max_pixels = max_pixels
        self._by_size: dict[Size, list[int]] = {}

    def ids(self, path: str) -> list[int]:
        """Token ids that stand for the image of a file.

        Raises:
            DataError: it cannot be read.
        """
        size = _size(path)
        if size not in self._by_size:
            image = read_image(path, max_pixels=self._max_pixels)
            outputs = self._processor(text=[self._family.image_placeholder], images=[[image]])
            self._by_size[size] = list(outputs["input_ids"][0])
        return self._by_size[size]


def prompt_ids(
    processor: Any, family: Family, question: str, image_ids: Sequence[int] | None, *, terse: bool
) -> list[int]:
    """Token ids of a question as the engine would write it.

    The placeholder is made of special tokens, at which a tokenizer cuts: the text on either side stands for itself.

    Args:
        image_ids: see `Placeholders`; None: the question is about no image.
        terse: without the instruction.
    """
    messages = chat_messages(question, family, terse=terse, shows_image=image_ids is not None)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    if image_ids is None:
        return list(processor.tokenizer([text], add_special_tokens=False)["input_ids"][0])
    before, placeholder, after = text.partition(family.image_placeholder)
    assert placeholder, f"the chat template of {family.model_type} leaves no {family.image_placeholder}"
    ids = processor.tokenizer([before, after], add_special_tokens=False)["input_ids"]
    return [*ids[0], *image_ids, *ids[1]]


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
            f"longer than learner.tokens_per_micro_batch={tokens_per_micro_batch}: {named(faults)}; set it to "
            f"{longest} or more, or lower model.max_pixels"
        )
    return longest


def _added(tokenizer: Any) -> dict[int, Any]:
    """The tokens that a tokenizer holds beside its trained vocabulary, by id."""
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    return added


def _size(path: str) -> Size:
    """What decides how many tokens an image takes, from the file's head."""
    try:
        with Image.open(path) as image:
            return (*image.size, int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    except OSError as error:
        raise DataError(f"cannot read image {path!r}: {error}; check the path and the file") from error
