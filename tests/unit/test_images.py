"""What stands between an image file and a processor: reading, and the processor's settings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mrpo.errors import ConfigError, DataError
from mrpo.families import FAMILIES
from mrpo.images import processor_settings, read_image, set_up_processor
from mrpo.validation import build_config

QWEN, INTERNVL = FAMILIES["qwen2_5_vl"], FAMILIES["internvl"]


class Size(dict[str, int]):
    """A mapping made from keywords, as the processors' own."""


def qwen_processor(shortest: int, longest: int) -> SimpleNamespace:
    return SimpleNamespace(size=Size(shortest_edge=shortest, longest_edge=longest))


def tile_processor(most: int) -> SimpleNamespace:
    return SimpleNamespace(size=Size(height=448, width=448), crop_to_patches=False, min_patches=1, max_patches=most)


def test_a_rotated_photograph_is_read_upright(tmp_path: Path) -> None:
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to see it
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_image(str(tmp_path / "a.png"), max_pixels=100)
    assert image.size == (2, 4)
    assert np.asarray(image)[0, 1].tolist() == [255, 255, 255]  # top left has become top right


def test_deep_grey_is_scaled_to_its_own_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1000, 2000], [3000, 5000]], dtype=np.uint16)).save(tmp_path / "a.png")
    image = read_image(str(tmp_path / "a.png"), max_pixels=100)
    assert image.mode == "RGB"
    assert np.asarray(image)[..., 0].tolist() == [[0, 64], [128, 255]]


def test_an_even_deep_image_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 3), 700, dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_image(str(tmp_path / "a.png"), max_pixels=100)).max() == 0


def test_large_images_keep_their_shape_and_strips_are_refused(tmp_path: Path) -> None:
    Image.new("L", (400, 100)).save(tmp_path / "wide.png")
    assert read_image(str(tmp_path / "wide.png"), max_pixels=10_000).size == (200, 50)
    Image.new("L", (2010, 10)).save(tmp_path / "strip.png")
    with pytest.raises(DataError, match=r"strip\.png' has 2010 × 10 pixels; .* 200 times .* crop it"):
        read_image(str(tmp_path / "strip.png"), max_pixels=10_000)


@pytest.mark.parametrize(
    ("own", "max_pixels", "expected"),
    [((3136, 12_845_056), 802_816, (3136, 802_816)), ((65_536, 16_777_216), 20_000, (20_000, 20_000)),
     ((3136, 15_000), 802_816, (3136, 15_000))],
)  # fmt: skip
def test_max_pixels_lowers_what_the_checkpoint_says_and_never_raises_it(
    own: tuple[int, int], max_pixels: int, expected: tuple[int, int]
) -> None:
    processor = SimpleNamespace(image_processor=qwen_processor(*own))
    set_up_processor(processor, QWEN, max_pixels=max_pixels, max_tiles=None)
    size = processor.image_processor.size
    assert isinstance(size, Size)
    assert (size["shortest_edge"], size["longest_edge"]) == expected


@pytest.mark.parametrize(("own", "asked", "most"), [(12, None, 12), (12, 4, 4), (6, 20, 20), (12, 1, 1)])
def test_tiles_are_as_many_as_asked_for_or_as_the_checkpoint_says(own: int, asked: int | None, most: int) -> None:
    found = processor_settings(tile_processor(own), INTERNVL, max_pixels=1, max_tiles=asked)
    assert found == {"crop_to_patches": True, "min_patches": 1, "max_patches": most}


def test_tiles_of_a_family_without_are_refused_where_the_settings_are_read() -> None:
    with pytest.raises(ConfigError, match=r"model\.max_tiles=4 .* qwen2_5_vl .* model\.max_pixels"):
        processor_settings(qwen_processor(1, 2), QWEN, max_pixels=1, max_tiles=4)
    with pytest.raises(ConfigError, match=r"model\.max_tiles=4"):
        build_config({"model": {"max_tiles": 4}})
    with pytest.raises(ConfigError, match=r"qwen3_vl"):
        build_config({"model": {"path": "/somewhere", "family": "qwen3_vl", "max_tiles": 4}})
    assert build_config({"model": {"toy_family": "internvl", "max_tiles": 4}}).model.max_tiles == 4
