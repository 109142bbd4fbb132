"""Pixel inputs of images, made once by the model's own processor and kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrpo.families import Family
from mrpo.images import read_image

CACHE_BYTES = 1024**3  # pixel inputs kept; an image of 800,000 pixels takes 19 MB
BLANK_SIZE = (64, 64)  # pixels, before the processor scales it to the least it works with
BATCH_IMAGES = 8  # images handed to the processor at one time; larger blocks of fresh memory cost more than they save


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelInputs:
    """What the model takes for one image."""

    tensors: dict[str, Tensor]  # by the names in `Family.pixel_inputs`; dimension 0 joins images
    num_tokens: int  # image tokens the processor writes into the prompt

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class ImageStore:
    """Least-recently-used cache from image path to pixel inputs."""

    def __init__(self, processor: Any, family: Family, *, max_pixels: int, cache_bytes: int = CACHE_BYTES) -> None:
        self._processor = processor
        self._family = family
        self._max_pixels = max_pixels
        self._cache_bytes = cache_bytes
        self._held: OrderedDict[str, PixelInputs] = OrderedDict()
        self._held_bytes = 0
        self._blank: PixelInputs | None = None
        self._image_token_id = processor.tokenizer.convert_tokens_to_ids(family.image_token)
        added: dict[str, int] = processor.tokenizer.get_added_vocab()
        self.vision_token_ids = frozenset(added[token] for token in family.vision_tokens if token in added)

    def get(self, paths: Sequence[str]) -> dict[str, PixelInputs]:
        """Pixel inputs of every distinct path.

        Raises:
            DataError: a file that cannot be read as an image.
        """
        found: dict[str, PixelInputs] = {}
        missing: list[str] = []
        for path in dict.fromkeys(paths):
            if path in self._held:
                self._held.move_to_end(path)
                found[path] = self._held[path]
            else:
                missing.append(path)
        for start in range(0, len(missing), BATCH_IMAGES):
            batch = missing[start : start + BATCH_IMAGES]
            images = [read_image(path, max_pixels=self._max_pixels) for path in batch]
            for path, pixels in zip(batch, self._process(images), strict=True):
                found[path] = pixels
                self._hold(path, pixels)
        return found

    def blank(self) -> PixelInputs:
        """Of a small black image, for a micro-batch that shows none."""
        if self._blank is None:
            (self._blank,) = self._process([Image.new("RGB", BLANK_SIZE)])
        return self._blank

    def _hold(self, path: str, pixels: PixelInputs) -> None:
        self._held[path] = pixels
        self._held_bytes += pixels.num_bytes
        while self._held_bytes > self._cache_bytes and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._held_bytes -= dropped.num_bytes

    def _process(self, images: list[Image.Image]) -> list[PixelInputs]:
        """Run the whole processor, text included: it alone knows its tiling defaults and how many tokens they need."""
        outputs = self._processor(
            text=[self._family.image_placeholder] * len(images),
            images=[[image] for image in images],
        )
        num_tokens = [sum(i == self._image_token_id for i in ids) for ids in outputs["input_ids"]]
        merged = {name: torch.as_tensor(np.asarray(outputs[name])) for name in self._family.pixel_inputs}
        if "image_grid_thw" in merged:
            rows = merged["image_grid_thw"].prod(dim=1).tolist()
            split = {
                "pixel_values": torch.split(merged["pixel_values"], rows),
                "image_grid_thw": torch.split(merged["image_grid_thw"], 1),
            }
        else:
            # One row a tile, each with the same number of tokens.
            tiles = merged["pixel_values"].shape[0]
            per_tile = sum(num_tokens) // tiles
            split = {"pixel_values": torch.split(merged["pixel_values"], [count // per_tile for count in num_tokens])}
        return [
            # A clone, so that one image held does not keep its whole batch alive.
            PixelInputs(tensors={name: parts[i].clone() for name, parts in split.items()}, num_tokens=num_tokens[i])
            for i in range(len(images))
        ]
