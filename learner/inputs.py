"""From samples to the padded tensors of a micro-batch.

Letters: B samples, L prompt and completion tokens (padded on the right), T completion tokens (padded), N completion
tokens of the whole micro-batch, I distinct images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from learner.images import ImageStore, PixelInputs
from mrpo.errors import DataError
from mrpo.types import ScoreSample, TrainSample

Sample = TrainSample | ScoreSample

PROMPT_CACHE_SIZE = 4096  # prompts whose rotary positions are kept
VISION_TOKEN_FIELDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What one forward pass takes.

    Padding is on the right, so that under a causal mask no real token ever sees it and no attention mask is needed.
    """

    input_ids: Tensor  # [B, L] int64
    position_ids: Tensor | None  # [3, B, L] int64 multimodal rotary positions; None: 0 … L-1
    pixels: dict[str, Tensor]  # of the I distinct images
    image_mask: Tensor  # [B, L] bool, where image features go
    feature_index: Tensor  # [image_mask.sum()] int64 into the features of the I images, one image after another
    predict_index: Tensor  # [N] int64 into the flattened [B · L] states that predict completion tokens
    targets: Tensor  # [N] int64, the completion tokens, sample after sample
    completion_mask: Tensor  # [B, T] bool

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device, non_blocking=True)
        return replace(self, **moved, pixels={name: tensor.to(device) for name, tensor in self.pixels.items()})

    def per_token(self, values: Sequence[Sequence[float]]) -> Tensor:
        """Pad one list of T numbers a sample to [B, T] float32 on this micro-batch's device."""
        padded = torch.zeros(self.completion_mask.shape, dtype=torch.float32)
        for row, numbers in enumerate(values):
            padded[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.float32)
        return padded.to(self.completion_mask.device)


class InputBuilder:
    """Makes micro-batches for one model."""

    def __init__(self, model: Any, images: ImageStore, *, pad_token_id: int) -> None:
        config = model.config
        self._images = images
        self._pad_token_id = pad_token_id
        self._image_token_id = int(config.image_token_id)
        self._vision_token_ids = {int(getattr(config, name)) for name in VISION_TOKEN_FIELDS if hasattr(config, name)}
        self._rope_index = model.model.get_rope_index if hasattr(model.model, "get_rope_index") else None
        self._prompt_positions: OrderedDict[tuple[str, tuple[int, ...]], Tensor] = OrderedDict()

    def has_vision_token(self, sample: Sample) -> bool:
        """Whether the completion contains a token that stands for image input, which no answer may."""
        return not self._vision_token_ids.isdisjoint(sample.completion_token_ids)

    def check(self, samples: Sequence[Sample]) -> None:
        """Read the images of `samples` and compare them with the prompts, so that `build` will not fail.

        Raises:
            DataError: an unreadable image, or a prompt whose number of image tokens is not that of the image.
        """
        for sample in samples:
            self._check_image_tokens(sample, self._images.get([sample.image])[sample.image])

    def build(self, samples: Sequence[Sample]) -> MicroBatch:
        """Tensors of `samples`, in their order.

        Raises:
            DataError: an unreadable image, or a prompt whose number of image tokens is not that of the image.
        """
        pixels = self._images.get([sample.image for sample in samples])
        for sample in samples:
            self._check_image_tokens(sample, pixels[sample.image])
        lengths = [len(s.prompt_token_ids) + len(s.completion_token_ids) for s in samples]
        length = max(lengths)
        widest = max(len(s.completion_token_ids) for s in samples)
        input_ids = torch.full((len(samples), length), self._pad_token_id, dtype=torch.int64)
        image_mask = torch.zeros((len(samples), length), dtype=torch.bool)
        completion_mask = torch.zeros((len(samples), widest), dtype=torch.bool)
        predict_index: list[Tensor] = []
        for row, sample in enumerate(samples):
            prompt = len(sample.prompt_token_ids)
            ids = torch.tensor([*sample.prompt_token_ids, *sample.completion_token_ids], dtype=torch.int64)
            input_ids[row, : lengths[row]] = ids
            image_mask[row, :prompt] = ids[:prompt] == self._image_token_id
            completion_mask[row, : lengths[row] - prompt] = True
            first = row * length + prompt - 1  # the last prompt token predicts the first completion token
            predict_index.append(torch.arange(first, first + lengths[row] - prompt))
        names = next(iter(pixels.values())).tensors
        return MicroBatch(
            input_ids=input_ids,
            position_ids=self._positions(samples, pixels, length),
            pixels={name: torch.cat([image.tensors[name] for image in pixels.values()]) for name in names},
            image_mask=image_mask,
            feature_index=_feature_index(samples, pixels),
            predict_index=torch.cat(predict_index),
            targets=torch.tensor([t for s in samples for t in s.completion_token_ids], dtype=torch.int64),
            completion_mask=completion_mask,
        )

    def _check_image_tokens(self, sample: Sample, pixels: PixelInputs) -> None:
        found = sample.prompt_token_ids.count(self._image_token_id)
        if found != pixels.num_tokens:
            raise DataError(
                f"completion {sample.key}: its prompt holds {found} image tokens, but image {sample.image!r} gives "
                f"{pixels.num_tokens}; engine and learner must scale images alike (model.max_pixels)"
            )
        if not sample.prompt_token_ids:
            raise DataError(f"completion {sample.key}: its prompt is empty; expected at least one token")

    def _positions(self, samples: Sequence[Sample], pixels: dict[str, PixelInputs], length: int) -> Tensor | None:
        if self._rope_index is None:
            return None
        rows = torch.zeros((3, len(samples), length), dtype=torch.int64)
        for row, sample in enumerate(samples):
            prompt = self._positions_of_prompt(sample, pixels[sample.image])
            start = prompt.shape[1]
            rows[:, row, :start] = prompt
            # A completion is text: its three coordinates count on together from the prompt's largest.
            after = int(prompt.max()) + 1
            rows[:, row, start:] = torch.arange(after, after + length - start)
        return rows

    def _positions_of_prompt(self, sample: Sample, pixels: PixelInputs) -> Tensor:
        """[3, P], by the model's own rule."""
        assert self._rope_index is not None
        key = (sample.image, tuple(sample.prompt_token_ids))
        if key not in self._prompt_positions:
            ids = torch.tensor([sample.prompt_token_ids])
            positions, _ = self._rope_index(
                ids,
                mm_token_type_ids=(ids == self._image_token_id).int(),
                image_grid_thw=pixels.tensors["image_grid_thw"],
            )
            self._prompt_positions[key] = positions[:, 0]
            if len(self._prompt_positions) > PROMPT_CACHE_SIZE:
                self._prompt_positions.popitem(last=False)
        return self._prompt_positions[key]


def _feature_index(samples: Sequence[Sample], pixels: dict[str, PixelInputs]) -> Tensor:
    """Rows of the distinct images' features, in the order in which the samples' image tokens take them."""
    rows: dict[str, Tensor] = {}
    first = 0
    for path, image in pixels.items():
        rows[path] = torch.arange(first, first + image.num_tokens)
        first += image.num_tokens
    return torch.cat([rows[sample.image] for sample in samples])
