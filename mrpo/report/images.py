"""Images small enough to live inside the report."""

from __future__ import annotations

import base64
import io
from functools import lru_cache

from PIL import Image, UnidentifiedImageError

MAX_SIDE = 256  # pixels; smaller images stay as they are
JPEG_ABOVE = 128  # pixels; smaller ones stay lossless


@lru_cache(maxsize=32)
def data_uri(path: str) -> str | None:
    """The image as a `data:` address; None where the file is gone or no image."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    kind = "jpeg" if max(small.size) > JPEG_ABOVE else "png"
    buffer = io.BytesIO()
    small.save(buffer, format=kind, **({"quality": 82} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
