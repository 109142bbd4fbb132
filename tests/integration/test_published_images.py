"""Learner, supervised training and engine make the same pixels and token ids of an image, on published layouts."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from learner.hf_folder import hf_model, write_hf_folder
from learner.images import ImageStore
from learner.model import load_processor
from learner.step import score
from mrpo.families import FAMILIES
from mrpo.images import read_image
from mrpo.parity import compare_logprobs
from mrpo.prompt_tokens import prompt_ids
from mrpo.types import ScoreSample
from tests.integration.learner_world import make, spec
from tests.integration.published_engines import Ask, run_engines
from tests.published_layout import TILE_SIZE, write_published

CORPUS = ["Which organ is it?", "The organ is the liver.", "Reason step by step, then give the final answer."] * 3
QUESTION = "Which organ is it?"
TIMEOUT_S = 500.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How images are limited: by the run's settings, by the checkpoint's, or by neither."""

    name: str
    family: str
    max_pixels: int = 802_816
    max_tiles: int | None = None
    own_max_pixels: int | None = None  # written into the checkpoint's preprocessor file


SETTINGS = [
    Setting(name="qwen2_5_vl", family="qwen2_5_vl"),
    Setting(name="qwen2_5_vl-below", family="qwen2_5_vl", max_pixels=3000),  # less than the checkpoint's least
    Setting(name="qwen2_5_vl-above", family="qwen2_5_vl", own_max_pixels=20_000),
    Setting(name="qwen3_vl", family="qwen3_vl"),
    Setting(name="qwen3_vl-below", family="qwen3_vl", max_pixels=20_000),
    Setting(name="internvl", family="internvl"),
    Setting(name="internvl-one", family="internvl", max_tiles=1, max_pixels=20_000),
    Setting(name="internvl-four", family="internvl", max_tiles=4),
]


def write_images(folder: Path) -> dict[str, str]:
    """Files of many sizes, shapes and kinds; name → path."""
    rng = np.random.default_rng(0)

    def noise(width: int, height: int, channels: int = 3) -> Any:
        pixels = rng.integers(0, 255, (height, width, channels), dtype=np.uint8)
        return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)

    turned = Image.Exif()
    turned[0x0112] = 6
    images = {
        "square.png": noise(TILE_SIZE, TILE_SIZE),
        "tiny.png": noise(8, 5),
        "wide.png": noise(900, 30),
        "tall.png": noise(60, 400),
        "large.png": noise(1300, 1000),
        "photograph.jpg": noise(320, 240),
        "grey.png": noise(100, 140, 1),
        "transparent.png": noise(120, 90, 4),
        "deep.png": Image.fromarray(rng.integers(0, 4096, (90, 130)).astype(np.uint16)),
        "palette.gif": noise(77, 133).quantize(16),
    }
    for name, image in images.items():
        image.save(folder / name)
    images["photograph.jpg"].save(folder / "turned.jpg", exif=turned)
    return {name: str(folder / name) for name in [*images, "turned.jpg"]}


@dataclass(kw_only=True)
class World:
    """Checkpoints, images and what the engines made of them."""

    folder: Path
    images: dict[str, str]
    answers: dict[str, dict[str, Any]]


def checkpoint(folder: Path, setting: Setting) -> Path:
    """The checkpoint of a setting; one for all that do not change its files."""
    path = folder / (setting.family if setting.own_max_pixels is None else setting.name)
    if not path.is_dir():
        write_published(setting.family, path, corpus=CORPUS)
        if setting.own_max_pixels is not None:
            file = path / "preprocessor_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"max_pixels": setting.own_max_pixels}))
    return path


def image_ids(processor: Any, setting: Setting, path: str) -> list[int]:
    """Token ids that stand for an image in a prompt, by the learner's processor."""
    image = read_image(path, max_pixels=setting.max_pixels)
    placeholder = FAMILIES[setting.family].image_placeholder
    return list(processor(text=[placeholder], images=[[image]])["input_ids"][0])


def samples(folder: Path, setting: Setting, images: dict[str, str]) -> list[ScoreSample]:
    """Completions of random words about some of the images."""
    family = FAMILIES[setting.family]
    processor = load_processor(
        str(checkpoint(folder, setting)), family, max_pixels=setting.max_pixels, max_tiles=setting.max_tiles
    )
    rng = np.random.default_rng(1)
    return [
        ScoreSample(
            key=name,
            image=images[name],
            prompt_token_ids=prompt_ids(
                processor,
                family,
                QUESTION,
                image_ids(processor, setting, images[name]),
                terse=False,
            ),
            completion_token_ids=rng.integers(0, 200, 12).tolist(),
        )
        for name in ("square.png", "wide.png", "turned.jpg")
    ]


def export(folder: Path, setting: Setting) -> Path:
    """The checkpoint of a setting as the learner writes it out again."""
    path = folder / f"{setting.name}-export"
    rank = learner_of(folder, setting)
    write_hf_folder(path, hf_model(rank), iter(rank.source))
    return path


def learner_of(folder: Path, setting: Setting) -> Any:
    """A learner rank on the checkpoint of a setting."""
    return make(replace(spec(folder, setting.family), max_pixels=setting.max_pixels, terse=False))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("published")
    images = write_images(folder)
    asks = [
        Ask(
            name=setting.name,
            folder=str(checkpoint(folder, setting)),
            model_type=setting.family,
            max_pixels=setting.max_pixels,
            max_tiles=setting.max_tiles,
            pixels=[(QUESTION, path) for path in images.values()],
            score=[asdict(sample) for sample in samples(folder, setting, images)],
        )
        for setting in SETTINGS
    ]
    exports = [export(folder, setting) for setting in SETTINGS if setting.name == setting.family]
    asks += [
        replace(ask, name=path.name, folder=str(path), pixels=[])
        for path in exports
        for ask in asks
        if path.name == f"{ask.name}-export"
    ]
    return World(folder=folder, images=images, answers=run_engines(asks, folder, timeout_s=TIMEOUT_S))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_pixels_are_equal_to_the_bit_and_prompts_to_the_token(setting: Setting, world: World) -> None:
    family = FAMILIES[setting.family]
    limits = {"max_pixels": setting.max_pixels, "max_tiles": setting.max_tiles}
    processor = load_processor(str(checkpoint(world.folder, setting)), family, **limits)  # type: ignore[arg-type]
    ours = ImageStore(processor, family, max_pixels=setting.max_pixels).get(list(world.images.values()))
    for index, (name, path) in enumerate(world.images.items()):
        theirs = load_file(world.folder / f"{setting.name}-{index}.safetensors")
        for key in family.pixel_inputs:
            # The engine keeps an image's grid without the dimension that joins images.
            found = ours[path].tensors[key]
            expected = theirs[key].reshape(found.shape)
            assert found.dtype == expected.dtype, name
            assert torch.equal(found, expected), name
        ids = world.answers[setting.name]["ids"][index]
        token = processor.tokenizer.convert_tokens_to_ids(family.image_token)
        assert ids.count(token) == ours[path].num_tokens, name
        supervised = prompt_ids(processor, family, QUESTION, image_ids(processor, setting, path), terse=False)
        assert supervised == ids, name


def test_limits_of_run_and_checkpoint_bound_the_image(world: World) -> None:
    def num_pixels(name: str, image: str) -> int:
        index = list(world.images).index(image)
        tensors = load_file(world.folder / f"{name}-{index}.safetensors")
        patch = {"qwen2_5_vl": 14, "qwen3_vl": 16}[name.split("-")[0]]
        return int(tensors["image_grid_thw"].prod()) * patch**2

    assert 700_000 < num_pixels("qwen2_5_vl", "large.png") <= 802_816
    assert 1_000 < num_pixels("qwen2_5_vl-below", "large.png") <= 3_000
    assert 15_000 < num_pixels("qwen2_5_vl-above", "large.png") <= 20_000
    assert 700_000 < num_pixels("qwen3_vl", "large.png") <= 802_816
    assert 15_000 < num_pixels("qwen3_vl-below", "large.png") <= 20_000
    assert num_pixels("qwen3_vl", "tiny.png") >= 65_536  # the checkpoint's least


def test_tiles_are_cut_as_asked_with_an_overview(world: World) -> None:
    def num_tiles(name: str, image: str) -> int:
        index = list(world.images).index(image)
        return len(load_file(world.folder / f"{name}-{index}.safetensors")["pixel_values"])

    assert num_tiles("internvl", "square.png") == 1
    assert num_tiles("internvl", "wide.png") == 12 + 1
    assert num_tiles("internvl-four", "wide.png") == 4 + 1
    assert {num_tiles("internvl-one", image) for image in world.images} == {1}


def test_a_turned_photograph_is_another_image(world: World) -> None:
    index = [list(world.images).index(name) for name in ("photograph.jpg", "turned.jpg")]
    plain, turned = (load_file(world.folder / f"qwen2_5_vl-{i}.safetensors")["image_grid_thw"].tolist() for i in index)
    assert plain == [1, turned[2], turned[1]]


@pytest.mark.parametrize("setting", [item for item in SETTINGS if item.name == item.family], ids=lambda item: item.name)
def test_engine_and_learner_read_the_published_files_alike_and_the_engine_their_export(
    setting: Setting, world: World
) -> None:
    asked = samples(world.folder, setting, world.images)
    ours = score(learner_of(world.folder, setting), asked)
    for name in (setting.name, f"{setting.name}-export"):
        result = compare_logprobs(asked, [ours[i] for i in range(len(asked))], world.answers[name]["scores"])
        assert result.num_tokens == 36
        assert result.mean_diff < 1e-4
