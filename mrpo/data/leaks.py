"""Images that training and held-out splits share, exactly or nearly.

Letters: N training images, M held-out images, W 64-bit words of a hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mrpo.data.image_store import StoredImage

BLOCK = 256  # held-out images compared with all training images at one time


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A held-out image and the training image most like it."""

    held_out: str  # path in the prepared set
    train: str
    distance: int | None  # bits in which the hashes differ; None: the same pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakReport:
    """One held-out split against training."""

    split: str
    num_images: int  # of the held-out split
    leaks: list[Leak]
    train_images: frozenset[str]  # paths of all training images that resemble one of the split

    @property
    def num_identical(self) -> int:
        """Held-out images with a training image of the same pixels."""
        return sum(leak.distance is None for leak in self.leaks)

    @property
    def num_near(self) -> int:
        """Held-out images that only resemble a training image."""
        return len(self.leaks) - self.num_identical


def find_leaks(images: Mapping[str, Sequence[StoredImage]], *, near_distance: int) -> list[LeakReport]:
    """Compare the training images with those of each other split.

    Args:
        images: split to its images, each once.
        near_distance: largest number of differing hash bits of images that count as near-identical.
    """
    train = list(images.get("train", ()))
    held_out = [split for split in ("validation", "test") if images.get(split)]
    return [_report(split, train, list(images[split]), near_distance) for split in held_out if train]


def _report(split: str, train: list[StoredImage], held_out: list[StoredImage], near_distance: int) -> LeakReport:
    by_pixels: dict[bytes, list[StoredImage]] = {}
    for image in train:
        by_pixels.setdefault(image.pixels, []).append(image)
    train_words = _words(train)  # [N, W]
    leaks: list[Leak] = []
    touched: set[str] = set()
    for start in range(0, len(held_out), BLOCK):
        block = held_out[start : start + BLOCK]
        words = _words(block)  # [M, W]
        distances = np.zeros((len(block), len(train)), dtype=np.uint16)  # [M, N]
        for word in range(words.shape[1]):
            distances += np.bitwise_count(words[:, word, None] ^ train_words[None, :, word])
        for image, row in zip(block, distances, strict=True):
            same = by_pixels.get(image.pixels, [])
            touched.update(twin.path for twin in same)
            touched.update(train[index].path for index in np.flatnonzero(row <= near_distance))
            nearest = int(row.argmin())
            if same:
                leaks.append(Leak(held_out=image.path, train=same[0].path, distance=None))
            elif row[nearest] <= near_distance:
                leaks.append(Leak(held_out=image.path, train=train[nearest].path, distance=int(row[nearest])))
    return LeakReport(split=split, num_images=len(held_out), leaks=leaks, train_images=frozenset(touched))


def _words(images: list[StoredImage]) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Hashes as [images, W] uint64."""
    return np.frombuffer(b"".join(image.hash for image in images), dtype=np.uint64).reshape(len(images), -1)
