"""How an image file becomes the pixels a model sees; engine and learner both read through here, so that they agree."""

from __future__ import annotations

from PIL import Image

from mrpo.errors import DataError


def read_image(path: str, *, max_pixels: int) -> Image.Image:
    """Read an RGB image, scaled down to at most `max_pixels` (width × height) with its aspect ratio kept.

    Raises:
        DataError: the file is missing or is no readable image; the message names it.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise DataError(f"cannot read image {path!r}: {error}; check the path and the file") from error
    num_pixels = image.width * image.height
    if num_pixels <= max_pixels:
        return image
    scale = (max_pixels / num_pixels) ** 0.5
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.BICUBIC)
