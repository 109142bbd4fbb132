"""From samples to the tensors of a micro-batch: one packed row, without padding.

Letters: B samples, L prompt and completion tokens of all of them, T completion tokens of the longest completion, N
completion tokens of all of them, P prompt tokens of a sample, I distinct images.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What one forward pass takes: the samples one after another in a single row, each with positions of its own."""

    input_ids: Tensor  # [1, L] int64
    position_ids: Tensor  # [3, 1, L] int64 multimodal rotary positions, or [1, L]; each sample's begin at 0
    lengths: tuple[int, ...]  # [B], they sum to L
    cu_seq_lens: Tensor  # [B + 1] int32, where the samples start and the last one ends
    pixels: dict[str, Tensor]  # of the I distinct images; of a blank one where there is none
    shows_image: bool  # False: the features of `pixels` belong to no token
    image_mask: Tensor  # [1, L] bool, where image features go
    feature_index: Tensor  # [image_mask.sum()] int64 into the features of the I images, one image after another
    predict_index: Tensor  # [N] int64 into the L states, those that predict completion tokens
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

    def __init__(self, model: Any, images: ImageStore) -> None:
        self._images = images
        self._image_token_id = int(model.config.image_token_id)
        self._vision_token_ids = images.vision_token_ids | {self._image_token_id}
        self._rope_index = model.model.get_rope_index if hasattr(model.model, "get_rope_index") else None
        self._prompt_positions: OrderedDict[tuple[str | None, tuple[int, ...]], Tensor] = OrderedDict()

    def has_vision_token(self, sample: Sample) -> bool:
        """Whether the completion contains a token that stands for visual input, which no answer may."""
        return not self._vision_token_ids.isdisjoint(sample.completion_token_ids)

    def check(self, samples: Sequence[Sample]) -> None:
        """Read the images of `samples` and compare them with the prompts, so that `build` will not fail.

        Raises:
            DataError: an unreadable image, or a prompt whose number of image tokens is not that of the image.
        """
        for sample in samples:
            self._check_prompt(sample, self._images.get(_shown([sample])))

    def build(self, samples: Sequence[Sample]) -> MicroBatch:
        """Tensors of `samples`, at least one, in their order.

        Raises:
            DataError: an unreadable image, or a prompt whose number of image tokens is not that of the image.
        """
        images = self._images.get(_shown(samples))
        for sample in samples:
            self._check_prompt(sample, images)
        rows = [torch.tensor([*s.prompt_token_ids, *s.completion_token_ids], dtype=torch.int64) for s in samples]
        lengths = torch.tensor([len(row) for row in rows])
        ends = lengths.cumsum(0)
        widths = torch.tensor([len(s.completion_token_ids) for s in samples])
        last = zip(ends.tolist(), widths.tolist(), strict=True)
        pixels = [image.tensors for image in images.values()] or [self._images.blank().tensors]
        input_ids = torch.cat(rows)[None]
        targets = torch.cat([row[len(row) - width :] for row, width in zip(rows, widths.tolist(), strict=True)])
        return MicroBatch(
            input_ids=input_ids,
            position_ids=torch.cat([self._positions(sample, images) for sample in samples], dim=-1),
            lengths=tuple(lengths.tolist()),
            cu_seq_lens=torch.cat([torch.zeros(1, dtype=torch.int32), ends.int()]),
            pixels={name: torch.cat([tensors[name] for tensors in pixels]) for name in pixels[0]},
            shows_image=bool(images),
            image_mask=input_ids == self._image_token_id,  # completions hold none
            feature_index=_feature_index(samples, images),
            # The token before a completion predicts its first.
            predict_index=torch.cat([torch.arange(end - width - 1, end - 1) for end, width in last]),
            targets=targets,
            completion_mask=torch.arange(int(widths.max())) < widths[:, None],
        )

    def _check_prompt(self, sample: Sample, images: dict[str, PixelInputs]) -> None:
        found = sample.prompt_token_ids.count(self._image_token_id)
        if sample.image is None and found:
            raise DataError(f"completion {sample.key}: its prompt holds {found} image tokens, but it has no image")
        if sample.image is not None and found != images[sample.image].num_tokens:
            raise DataError(
                f"completion {sample.key}: its prompt holds {found} image tokens, but image {sample.image!r} gives "
                f"{images[sample.image].num_tokens}; engine and learner must scale images alike (model.max_pixels)"
            )
        if not sample.prompt_token_ids:
            raise DataError(f"completion {sample.key}: its prompt is empty; expected at least one token")

    def _positions(self, sample: Sample, images: dict[str, PixelInputs]) -> Tensor:
        """[3, 1, tokens of the sample] by the model's own rule, or [1, tokens of the sample].

        No row of plain text positions comes before the three: transformers would only look for the samples'
        boundaries in it, which attention gets as they are.
        """
        num_tokens = len(sample.prompt_token_ids) + len(sample.completion_token_ids)
        if self._rope_index is None:
            return torch.arange(num_tokens)[None]
        prompt = self._positions_of_prompt(sample, images)
        # A completion is text: its three coordinates count on together from the prompt's largest.
        after = int(prompt.max()) + 1
        completion = torch.arange(after, after + len(sample.completion_token_ids))
        return torch.cat([prompt, completion.expand(3, -1)], dim=1)[:, None]

    def _positions_of_prompt(self, sample: Sample, images: dict[str, PixelInputs]) -> Tensor:
        """[3, P]."""
        assert self._rope_index is not None
        key = (sample.image, tuple(sample.prompt_token_ids))
        if key not in self._prompt_positions:
            ids = torch.tensor([sample.prompt_token_ids])
            positions, _ = self._rope_index(
                ids,
                mm_token_type_ids=(ids == self._image_token_id).int(),
                image_grid_thw=None if sample.image is None else images[sample.image].tensors["image_grid_thw"],
            )
            self._prompt_positions[key] = positions[:, 0]
            if len(self._prompt_positions) > PROMPT_CACHE_SIZE:
                self._prompt_positions.popitem(last=False)
        return self._prompt_positions[key]


def _shown(samples: Sequence[Sample]) -> list[str]:
    return [sample.image for sample in samples if sample.image is not None]


def _feature_index(samples: Sequence[Sample], images: dict[str, PixelInputs]) -> Tensor:
    """Rows of the distinct images' features, in the order in which the samples' image tokens take them."""
    rows: dict[str, Tensor] = {}
    first = 0
    for path, image in images.items():
        rows[path] = torch.arange(first, first + image.num_tokens)
        first += image.num_tokens
    return torch.cat([torch.empty(0, dtype=torch.int64), *(rows[path] for path in _shown(samples))])
