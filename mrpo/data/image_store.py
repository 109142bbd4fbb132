"""The images of a prepared set: checked, copied under safe names, each once, never more than one in memory."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import imagehash
import numpy as np
from PIL import Image, UnidentifiedImageError

from mrpo.data import dicom
from mrpo.data.rows import InlineImage
from mrpo.data.source import SourceFile, SourceTree
from mrpo.errors import DataError

FOLDER = "images"
MAX_IMAGE_BYTES = 512 * 2**20  # of one file; what Pillow's own limit on decoded pixels cannot see
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}
ALIASES = {".jpeg": ".jpg", ".jpe": ".jpg", ".tiff": ".tif"}
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits a channel
HASH_SIDE = 16  # a perceptual hash has HASH_SIDE² bits
IMAGE_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """One image of the prepared set."""

    path: str  # relative to the prepared set
    file_sha256: str
    pixels: bytes  # sha256 of size and RGB pixels: equal for images that look the same to a model
    hash: bytes  # perceptual hash, HASH_SIDE² bits


class ImageStore:
    """Takes images in by the name or the bytes that a row gives."""

    def __init__(self, tree: SourceTree, root: Path, *, max_pixels: int, allow_identifiers: bool) -> None:
        """Store below `root`."""
        self._tree = tree
        self._root = root
        self._max_pixels = max_pixels
        self._allow_identifiers = allow_identifiers
        self._seen: dict[str, StoredImage | str] = {}  # by source path or MD5; the fault where there is one
        self._owner: dict[str, str] = {}  # path in the prepared set: key in _seen
        self.renamed: list[str] = []  # images whose name told another type than their content
        (root / FOLDER).mkdir()

    @property
    def images(self) -> list[StoredImage]:
        """All images taken in."""
        return [image for image in self._seen.values() if isinstance(image, StoredImage)]

    def store(self, image: str | InlineImage) -> StoredImage | str:
        """The stored image, or what is wrong with it.

        Raises:
            DataError: DICOM that names a patient.
        """
        if isinstance(image, InlineImage):
            key = hashlib.md5(image.data, usedforsecurity=False).hexdigest()
            if key not in self._seen:
                self._seen[key] = self._take(key, image.data, image.name or "the row's image", PurePosixPath(key))
            return self._seen[key]
        found = self._tree.matching(image)
        if not found and (fault := self._tree.fault_of(image)):
            return f"image {image!r}: {fault}"
        if not found:
            return f"image {image!r} is not in the source folder{self._tree.archive_names}"
        key = found[0].path
        if key not in self._seen:
            self._seen[key] = self._read(image, found)
        return self._seen[key]

    def drop(self, image: StoredImage) -> None:
        """Remove an image that no question of the prepared set shows."""
        (self._root / image.path).unlink()

    def _read(self, name: str, found: list[SourceFile]) -> StoredImage | str:
        try:
            data = self._tree.read(found[0], max_bytes=MAX_IMAGE_BYTES)
            others = [file for file in found[1:] if self._tree.read(file, max_bytes=MAX_IMAGE_BYTES) != data]
        except DataError as error:
            return f"image {name!r}: {str(error).replace(f'{self._tree.root}/', '')}"
        if others:
            return f"image {name!r} may be {found[0].label} or {others[0].label}, which differ"
        parts = PurePosixPath(found[0].path).parts
        below = [index for index, part in enumerate(parts[:-1]) if part.lower() in (FOLDER, "imgs")]
        return self._take(found[0].path, data, found[0].label, PurePosixPath(*parts[below[-1] + 1 if below else 0 :]))

    def _take(self, key: str, data: bytes, label: str, name: PurePosixPath) -> StoredImage | str:
        if dicom.is_dicom(data):
            converted = dicom.png_of(
                data, label, max_pixels=self._max_pixels, allow_identifiers=self._allow_identifiers
            )
            if isinstance(converted, str):
                return f"image {label} {converted}"
            data, name = converted, name.with_suffix(".png")
        decoded = decode(data, max_pixels=self._max_pixels)
        if isinstance(decoded, str):
            return f"image {label} {decoded}"
        kind, image = decoded
        suffix = name.suffix.lower()
        if suffix in (*SUFFIXES.values(), *ALIASES) and ALIASES.get(suffix, suffix) != SUFFIXES[kind]:
            self.renamed.append(f"{label} is named {suffix} and holds {kind}")
        path = self._place(key, name, suffix if ALIASES.get(suffix, suffix) == SUFFIXES[kind] else SUFFIXES[kind])
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        bits = imagehash.phash(image, hash_size=HASH_SIDE).hash
        return StoredImage(
            path=path,
            file_sha256=hashlib.sha256(data).hexdigest(),
            pixels=hashlib.sha256(b"%d %d " % image.size + image.tobytes()).digest(),
            hash=np.packbits(bits).tobytes(),
        )

    def _place(self, key: str, name: PurePosixPath, suffix: str) -> str:
        """A path of its own in the prepared set."""
        clean = [re.sub(r"[\x00-\x1f\x7f\\:*?\"<>|]", "_", part)[:200] for part in name.with_suffix("").parts]
        path = PurePosixPath(FOLDER, *clean).as_posix()
        if self._owner.setdefault(path + suffix, key) != key:
            path += f"-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
            self._owner[path + suffix] = key
        return path + suffix


def decode(data: bytes, *, max_pixels: int) -> tuple[str, Image.Image] | str:
    """Type and RGB pixels of an image file, or what is wrong with it."""
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            opened = Image.open(io.BytesIO(data), formats=tuple(SUFFIXES))
        with opened as file:
            kind = "JPEG" if file.format == "MPO" else str(file.format)  # MPO: a JPEG with more pictures behind it
            if file.width * file.height > max_pixels:
                return f"has {file.width} × {file.height} pixels, more than data.max_pixels={max_pixels}"
            if kind != "JPEG" and _has_more_frames(file):
                return f"is a {kind} with several frames; export the one that is asked about"
            if file.mode in DEEP_MODES:
                return f"has more than 8 bits a channel ({file.mode}), which would be cut off; window it to 8 bits"
            return kind, file.convert("RGB")
    except UnidentifiedImageError:
        return f"is none of {', '.join(SUFFIXES)} or DICOM: it starts with {data[:12]!r}"
    except IMAGE_FAULTS as error:
        return f"cannot be read ({error})"


def _has_more_frames(file: Image.Image) -> bool:
    try:
        file.seek(1)
    except EOFError:
        return False
    file.seek(0)
    return True
