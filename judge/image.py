"""An image file as a data URL."""

from __future__ import annotations

import base64
import io
import os
from functools import lru_cache

import numpy as np
from PIL import Image

from mrpo.errors import DataError

CACHED_IMAGES = 64  # per process; the completions of one group share an image
FileVersion = tuple[int, ...]


def data_url(path: str) -> str:
    """The image as `data:image/…;base64,…`. PNG, JPEG and WebP go as they are, everything else as PNG.

    Raises:
        DataError: the file is missing or is no image.
    """
    try:
        facts = os.stat(path)
    except OSError as error:
        raise DataError(f"judge image {path}: {error.strerror}; check data.root and the image paths") from None
    return _encode(path, file_version(facts))


def file_version(facts: os.stat_result) -> FileVersion:
    """What differs once a file was written or replaced: tools may keep its size and set its time back, but not this."""
    return facts.st_dev, facts.st_ino, facts.st_ctime_ns, facts.st_mtime_ns, facts.st_size


@lru_cache(maxsize=CACHED_IMAGES)
def _encode(path: str, _version: FileVersion) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"judge image {path}: {error.strerror}; check data.root and the image paths") from None
    media_type = _media_type(data)
    if media_type is None:
        data, media_type = _to_png(path, data), "image/png"
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _media_type(data: bytes) -> str | None:
    """Formats every vision endpoint takes, told by content: extensions lie."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def _to_png(path: str, data: bytes) -> bytes:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            # Deep grey (16-bit radiographs) is scaled to its own range: Pillow's conversion would clip it to white.
            picture = _scaled_grey(image) if image.mode.startswith(("I", "F")) else image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"judge image {path}: not a readable image ({error})") from None
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def _scaled_grey(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float64)  # [H, W]
    low, high = float(pixels.min()), float(pixels.max())
    scaled = (pixels - low) * (255.0 / (high - low)) if high > low else np.zeros_like(pixels)
    return Image.fromarray(scaled.round().astype(np.uint8), mode="L")
