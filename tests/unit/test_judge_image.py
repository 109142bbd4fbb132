"""Image files as data URLs."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from judge.image import data_url
from mrpo.errors import DataError


def decoded(url: str) -> tuple[str, bytes]:
    head, data = url.split(",", 1)
    assert head.endswith(";base64")
    return head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(data, validate=True)


def picture() -> Image.Image:
    return Image.fromarray(np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3))


@pytest.mark.parametrize(("format_", "media_type"), [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp")])
def test_common_formats_are_sent_as_they_are_whatever_their_name(tmp_path: Path, format_: str, media_type: str) -> None:
    path = tmp_path / "scan.dat"
    picture().save(path, format=format_)
    assert decoded(data_url(str(path))) == (f"image/{media_type}", path.read_bytes())


def test_other_formats_become_png_with_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "scan.tiff"
    picture().save(path)
    media_type, data = decoded(data_url(str(path)))
    assert media_type == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture()))


def test_deep_grey_keeps_its_contrast(tmp_path: Path) -> None:
    path = tmp_path / "radiograph.tiff"
    Image.fromarray(np.array([[1000, 2000], [3000, 5000]], dtype=np.uint16)).save(path)
    pixels = np.asarray(Image.open(io.BytesIO(decoded(data_url(str(path)))[1])))
    np.testing.assert_array_equal(pixels, [[0, 64], [128, 255]])


def test_a_flat_deep_grey_image_is_black(tmp_path: Path) -> None:
    path = tmp_path / "flat.tiff"
    Image.fromarray(np.full((2, 2), 700, dtype=np.uint16)).save(path)
    pixels = np.asarray(Image.open(io.BytesIO(decoded(data_url(str(path)))[1])))
    np.testing.assert_array_equal(pixels, np.zeros((2, 2)))


def test_a_rewritten_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    picture().save(path)
    before = data_url(str(path))
    picture().transpose(Image.Transpose.ROTATE_180).save(path)
    os.utime(path, ns=(1, 1))  # two writes within one tick of a coarse clock must differ here
    assert data_url(str(path)) != before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: No such file"):
        data_url(str(tmp_path / "gone.png"))


@pytest.mark.parametrize("data", [b"", b"not an image", b"BMbroken"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "notes.tiff"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"notes\.tiff: not a readable image"):
        data_url(str(path))
