"""Prompts as token ids, and how long they are, known from text and image sizes before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import ExifTags, Image

from mrpo.config import Config
from mrpo.errors import DataError, first_few
from mrpo.families import Family
from mrpo.images import read_image
from mrpo.prompts import chat_messages
from mrpo.types import Example

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


def check_prompts(examples: Sequence[Example], processor: Any, family: Family, config: Config) -> int:
    """The tokens of the longest prompt; refuses what sampling or learning would stumble over.

    Args:
        examples: whose questions are asked.
        processor: of the policy.
        family: of the policy.
        config: of the run; a prompt must leave room for a whole completion in an engine and in a micro-batch.

    Raises:
        DataError: a longer prompt, or an unreadable image; the message names the rows.
    """
    limits = {
        "rollout.max_model_len": config.rollout.max_model_len,
        "learner.tokens_per_micro_batch": config.learner.tokens_per_micro_batch,
    }
    setting = min(limits, key=lambda name: limits[name])
    room = limits[setting] - config.rollout.max_new_tokens
    placeholders = Placeholders(processor, family, max_pixels=config.model.max_pixels)
    lengths = {}
    for example in examples:
        image_ids = placeholders.ids(example.image)
        ids = prompt_ids(processor, family, example.question, image_ids, terse=config.model.terse_prompt)
        lengths[example.id] = len(ids)
    longest = max(lengths.values(), default=0)
    faults = [f"{key}: {length} tokens" for key, length in lengths.items() if length > room]
    if faults:
        raise DataError(
            f"prompts that leave no room for rollout.max_new_tokens={config.rollout.max_new_tokens} within "
            f"{setting}={limits[setting]}: {first_few(faults)}; raise it to {longest + config.rollout.max_new_tokens} "
            "or more, or lower rollout.max_new_tokens, model.max_pixels or model.max_tiles"
        )
    return longest


def _size(path: str) -> Size:
    """What decides how many tokens an image takes, from the file's head."""
    try:
        with Image.open(path) as image:
            return (*image.size, int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    except OSError as error:
        raise DataError(f"cannot read image {path!r}: {error}; check the path and the file") from error
