"""How an image file becomes the pixels a model sees; engine and learner both read through here, so that they agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mrpo.errors import ConfigError, DataError
from mrpo.families import Family

MAX_ASPECT_RATIO = 200  # of the longer to the shorter side, the most that Qwen's processors take


def read_image(path: str, *, max_pixels: int) -> Image.Image:
    """Read an upright RGB image, scaled down to at most `max_pixels` (width × height) with its aspect ratio kept.

    Grey of more than 8 bits is scaled to its own range: cut off at 255, as Pillow does it, a radiograph is all white.

    Raises:
        DataError: the file is missing, is no readable image or a strip of pixels; the message names it.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            image = _scaled_grey(upright) if upright.mode.startswith(("I", "F")) else upright.convert("RGB")
    except OSError as error:
        raise DataError(f"cannot read image {path!r}: {error}; check the path and the file") from error
    shorter, longer = sorted(image.size)
    if longer > MAX_ASPECT_RATIO * shorter:
        raise DataError(
            f"image {path!r} has {image.width} × {image.height} pixels; one side may be at most {MAX_ASPECT_RATIO} "
            "times the other; crop it, or take its rows out of the data set"
        )
    num_pixels = image.width * image.height
    if num_pixels <= max_pixels:
        return image
    scale = (max_pixels / num_pixels) ** 0.5
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.BICUBIC)


def _scaled_grey(image: Image.Image) -> Image.Image:
    """RGB of an image with one deep channel, its darkest pixel black and its brightest white."""
    pixels = np.asarray(image, dtype=np.float64)  # [H, W]
    low, high = float(pixels.min()), float(pixels.max())
    scaled = (pixels - low) * (255.0 / (high - low)) if high > low else np.zeros_like(pixels)
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")


def cuts_tiles(family: Family) -> bool:
    """Whether the family's processor cuts an image into tiles of one size; the others scale it as a whole."""
    return "image_grid_thw" not in family.pixel_inputs


def require_tiles(family: Family, max_tiles: int | None) -> None:
    """Refuse `model.max_tiles` where it would do nothing.

    Raises:
        ConfigError: the family's processor cuts no tiles.
    """
    if max_tiles is not None and not cuts_tiles(family):
        raise ConfigError(
            f"model.max_tiles={max_tiles} is for processors that cut an image into tiles (internvl), and that of "
            f"{family.model_type} scales it as a whole; set model.max_pixels, and leave model.max_tiles=null"
        )


def processor_settings(
    image_processor: Any, family: Family, *, max_pixels: int, max_tiles: int | None
) -> dict[str, Any]:
    """What `model.max_pixels` and `model.max_tiles` mean to the image processor of a checkpoint, by its own names.

    The processor's least and largest number of pixels are lowered to `max_pixels`, so that it never scales an image
    up beyond it, and an engine reserves no more room than an image can take.

    Args:
        image_processor: as the checkpoint's files make it.
        family: of the checkpoint.
        max_pixels: width × height.
        max_tiles: without the overview that is added to two and more; None: as many as the processor's own.

    Raises:
        ConfigError: `max_tiles` for a family without tiles.
    """
    require_tiles(family, max_tiles)
    if not cuts_tiles(family):
        size = image_processor.size
        return {
            "size": {
                "shortest_edge": min(size["shortest_edge"], max_pixels),
                "longest_edge": min(size["longest_edge"], max_pixels),
            }
        }
    most = image_processor.max_patches if max_tiles is None else max_tiles
    return {
        "crop_to_patches": True,
        "min_patches": min(image_processor.min_patches, most),
        "max_patches": most,
    }


def set_up_processor(processor: Any, family: Family, *, max_pixels: int, max_tiles: int | None) -> None:
    """Give a loaded processor the run's `processor_settings`; what it saves from here has them too.

    Raises:
        ConfigError: `max_tiles` for a family without tiles.
    """
    images = processor.image_processor
    for name, value in processor_settings(images, family, max_pixels=max_pixels, max_tiles=max_tiles).items():
        setattr(images, name, type(images.size)(**value) if name == "size" else value)
