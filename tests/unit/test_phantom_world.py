"""What a phantom shows can be measured in its pixels: every attribute is really there."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mrpo.phantom.world import (
    SIZE,
    UPTAKE_RGB,
    Half,
    Modality,
    Organ,
    Scene,
    Side,
    draw_scene,
    render,
)

SCENE = Scene(modality=Modality.CT, organ=Organ.KIDNEY, side=Side.LEFT, half=Half.UPPER, num_lesions=1, marker=False)
SCENES = [
    Scene(modality=modality, organ=organ, side=side, half=half, num_lesions=number, marker=marker)
    for modality, organ, side, half, number, marker in itertools.product(
        Modality, Organ, Side, Half, (1, 2, 3), (False, True)
    )
]


def pixels(scene: Scene, seed: int = 0, *, noise: float = 0.0) -> np.ndarray:
    """[84, 84, 3] float64, 0 … 255."""
    return np.asarray(render(scene, np.random.default_rng(seed), noise=noise), dtype=np.float64)


def colourfulness(scene: Scene, seed: int = 0) -> np.ndarray:
    """[84, 84]: how far a pixel is from grey; only uptake has colour."""
    colour: np.ndarray = np.ptp(pixels(scene, seed), axis=2)
    return colour


def num_blobs(mask: np.ndarray) -> int:
    """Connected regions (by edges) of a boolean picture."""
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)}
    blobs = 0
    while left:
        blobs += 1
        border = [left.pop()]
        while border:
            row, column = border.pop()
            for neighbour in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    border.append(neighbour)
    return blobs


def test_the_same_generator_state_gives_the_same_picture() -> None:
    for seed in range(5):
        scene = draw_scene(np.random.default_rng(seed))
        assert render(scene, np.random.default_rng(seed), noise=0.06).tobytes() == (
            render(scene, np.random.default_rng(seed), noise=0.06).tobytes()
        )
    assert pixels(SCENE, 0, noise=0.06).tolist() != pixels(SCENE, 1, noise=0.06).tolist()


def test_a_picture_is_84_pixels_square_in_colour() -> None:
    image = render(SCENE, np.random.default_rng(0), noise=0.06)
    assert isinstance(image, Image.Image)
    assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")


def test_attributes_are_drawn_uniformly_and_a_marker_in_three_of_ten() -> None:
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng) for _ in range(6000)]
    for name, values, share in (
        ("modality", list(Modality), 1 / 4),
        ("organ", list(Organ), 1 / 4),
        ("side", list(Side), 1 / 2),
        ("half", list(Half), 1 / 2),
        ("num_lesions", [1, 2, 3], 1 / 3),
    ):
        counts = Counter(getattr(scene, name) for scene in scenes)
        assert set(counts) == set(values)
        for value in values:  # five standard deviations of a binomial count
            assert abs(counts[value] - 6000 * share) < 5 * (6000 * share * (1 - share)) ** 0.5, (name, value)
    assert abs(sum(scene.marker for scene in scenes) - 1800) < 5 * (6000 * 0.3 * 0.7) ** 0.5


def test_attributes_are_independent() -> None:
    rng = np.random.default_rng(1)
    scenes = [draw_scene(rng) for _ in range(9600)]
    cells = Counter((s.modality, s.organ, s.side, s.half, s.num_lesions) for s in scenes)
    assert len(cells) == 192
    expected = 9600 / 192
    chi_square = sum((cells[cell] - expected) ** 2 / expected for cell in cells)
    assert chi_square < 191 + 5 * (2 * 191) ** 0.5  # mean 191, variance 2 × 191


@pytest.mark.parametrize("seed", range(3))
def test_uptake_lies_in_its_quadrant_and_nowhere_else(seed: int) -> None:
    for scene in SCENES:
        colour = colourfulness(scene, seed)
        rows, columns = np.nonzero(colour > 60)
        assert len(rows) > 30, scene
        assert ((columns < SIZE / 2) == (scene.side == Side.LEFT)).all(), scene
        assert ((rows < SIZE / 2) == (scene.half == Half.UPPER)).all(), scene


def test_every_quadrant_has_its_colour_and_no_two_are_close() -> None:
    colours = [np.array(colour, dtype=float) for colour in UPTAKE_RGB.values()]
    assert set(UPTAKE_RGB) == set(itertools.product(Side, Half))
    assert min(np.abs(one - two).max() for one, two in itertools.combinations(colours, 2)) > 80


@pytest.mark.parametrize("seed", range(4))
def test_lesions_can_be_counted(seed: int) -> None:
    """Discs of full opacity keep the pure colour of their quadrant; as separate blobs they are as many as stated."""
    for scene in SCENES:
        distance = np.abs(pixels(scene, seed) - np.array(UPTAKE_RGB[scene.side, scene.half])).max(axis=2)
        assert num_blobs(distance < 25) == scene.num_lesions, scene


def test_looks_and_silhouettes_differ() -> None:
    """Mean pictures over places and noise, so that only what an attribute changes can tell them apart."""

    def mean(scene: Scene) -> np.ndarray:
        picture: np.ndarray = np.stack([pixels(scene, seed, noise=0.06) for seed in range(6)]).mean(axis=0)
        return picture

    modalities = [replace(SCENE, modality=modality) for modality in Modality]
    organs = [replace(SCENE, organ=organ) for organ in Organ]
    for scenes in (modalities, organs):
        for one, two in itertools.combinations(scenes, 2):
            assert np.abs(mean(one) - mean(two)).mean() > 5.0, (one, two)


def test_a_marker_changes_the_middle_and_only_the_middle() -> None:
    for scene in SCENES:
        if scene.marker or scene.modality == Modality.ULTRASOUND:  # speckle is relative to the brightness below it
            continue
        difference = np.abs(pixels(replace(scene, marker=True)) - pixels(scene)).max(axis=2)
        rows, columns = np.nonzero(difference > 3)
        assert len(rows) > 40, scene
        assert columns.min() >= 33 and columns.max() <= 51 and rows.min() >= 35 and rows.max() <= 42, scene


def test_noise_is_grey_and_of_the_configured_size() -> None:
    flat = replace(SCENE, modality=Modality.MRI, organ=Organ.KIDNEY)  # far from black and white: nothing is clipped
    clear, noisy = pixels(flat, 0, noise=0.0), pixels(flat, 0, noise=0.05)
    body = np.s_[35:45, 50:70]
    difference = (noisy - clear)[body]
    assert difference.std() == pytest.approx(0.05 * 255, rel=0.2)
    assert np.abs(difference - difference[:, :, :1]).max() <= 1.0, "rounding apart, the channels agree"
