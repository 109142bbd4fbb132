"""Phantom scans: small pictures of which every fact is known, drawn from a seed.

A scan has a modality (its overall look), an organ (its silhouette), one to three lesions in one quadrant, and sometimes
a bright marker that is no lesion. Sides are sides of the picture. Nothing here is clinical knowledge.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 84  # pixels; nine 28-pixel image tokens for a Qwen-style vision tower
GLOW_RADIUS = 17  # pixels
GLOW_PER_LESION = 0.2  # opacity of the diffuse uptake around the lesions
_SCALE = 2  # drawn larger and scaled down, for smooth edges


class Modality(StrEnum):
    """The look of the scan."""

    CT = "CT"
    MRI = "MRI"
    XRAY = "X-ray"
    ULTRASOUND = "ultrasound"


class Organ(StrEnum):
    """The silhouette."""

    LIVER = "liver"
    LUNG = "lung"
    KIDNEY = "kidney"
    BRAIN = "brain"


class Side(StrEnum):
    """Half of the picture."""

    LEFT = "left"
    RIGHT = "right"


class Half(StrEnum):
    """Half of the picture."""

    UPPER = "upper"
    LOWER = "lower"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All that is true of one scan."""

    modality: Modality
    organ: Organ
    side: Side
    half: Half
    num_lesions: int  # 1 … 3
    marker: bool  # a bright bar that is no lesion


# Lesions take up tracer and shine through the grey scan, as in a fused PET image. Their colour codes the quadrant, as
# direction-encoded maps do: a million parameters learn a colour in a minute and a place in ten.
UPTAKE_RGB = {
    (Side.LEFT, Half.UPPER): (255, 140, 20),
    (Side.RIGHT, Half.UPPER): (40, 220, 80),
    (Side.LEFT, Half.LOWER): (230, 40, 200),
    (Side.RIGHT, Half.LOWER): (30, 170, 255),
}


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene with every attribute uniform and independent; a marker in three of ten."""
    return Scene(
        modality=list(Modality)[rng.integers(4)],
        organ=list(Organ)[rng.integers(4)],
        side=list(Side)[rng.integers(2)],
        half=list(Half)[rng.integers(2)],
        num_lesions=int(rng.integers(1, 4)),
        marker=bool(rng.random() < 0.3),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    background: int
    body: int
    detail: int  # rim, midline, marker
    speckle: float  # multiplicative noise, share of the local brightness


_LOOKS = {
    Modality.CT: _Look(background=0, body=95, detail=235, speckle=0.0),
    Modality.MRI: _Look(background=40, body=180, detail=90, speckle=0.0),
    Modality.XRAY: _Look(background=215, body=120, detail=20, speckle=0.0),
    Modality.ULTRASOUND: _Look(background=60, body=25, detail=160, speckle=0.45),
}


def render(scene: Scene, rng: np.random.Generator, *, noise: float) -> Image.Image:
    """Draw a scan.

    Args:
        scene: what it shows.
        rng: decides jitter, lesion places and noise; the same generator state gives the same pixels.
        noise: standard deviation of additive pixel noise, as a share of full scale.

    Returns:
        An 84 × 84 RGB image: a grey scan, with tracer uptake as a coloured overlay.
    """
    look = _LOOKS[scene.modality]
    shift = rng.integers(-2, 3, size=2)
    anatomy, uptake = _Layer(look.background), _Layer(0)
    _draw_organ(anatomy.pen, scene.organ, look, shift)
    if scene.marker:
        _draw_marker(anatomy.pen, look)
    _draw_lesions(uptake.pen, scene, rng)
    grey = anatomy.pixels() * (1.0 + look.speckle * rng.standard_normal((SIZE, SIZE)))
    opacity = uptake.pixels()[:, :, None] / 255.0
    pixels = (1.0 - opacity) * grey[:, :, None] + opacity * np.array(UPTAKE_RGB[scene.side, scene.half])
    pixels += 255.0 * noise * rng.standard_normal((SIZE, SIZE, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


class _Layer:
    """One grey drawing, made large and scaled down."""

    def __init__(self, background: int) -> None:
        self._canvas = Image.new("L", (SIZE * _SCALE, SIZE * _SCALE), background)
        self.pen = ImageDraw.Draw(self._canvas)

    def pixels(self) -> np.ndarray:
        """[84, 84] float64, 0 … 255."""
        small = self._canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
        return np.asarray(small.filter(ImageFilter.GaussianBlur(0.4)), dtype=np.float64)


def _box(x0: float, y0: float, x1: float, y1: float, shift: np.ndarray) -> list[float]:
    dx, dy = float(shift[0]), float(shift[1])
    return [(x0 + dx) * _SCALE, (y0 + dy) * _SCALE, (x1 + dx) * _SCALE, (y1 + dy) * _SCALE]


def _draw_organ(pen: ImageDraw.ImageDraw, organ: Organ, look: _Look, shift: np.ndarray) -> None:
    """Four silhouettes wide enough that every lesion lies inside."""
    match organ:
        case Organ.LIVER:  # a wedge, cut at the lower right
            corners = [(2, 4), (82, 8), (82, 66), (66, 80), (4, 82)]
            pen.polygon(
                [((x + int(shift[0])) * _SCALE, (y + int(shift[1])) * _SCALE) for x, y in corners], fill=look.body
            )
        case Organ.LUNG:  # two wings with a gap
            pen.ellipse(_box(2, 3, 38, 81, shift), fill=look.body)
            pen.ellipse(_box(46, 3, 82, 81, shift), fill=look.body)
        case Organ.KIDNEY:  # a bean with a notch below
            pen.ellipse(_box(1, 3, 83, 81, shift), fill=look.body)
            pen.ellipse(_box(28, 50, 56, 88, shift), fill=look.background)
        case Organ.BRAIN:  # a disc with a rim and a midline
            pen.ellipse(_box(0, 0, 84, 84, shift), fill=look.detail)
            pen.ellipse(_box(3, 3, 81, 81, shift), fill=look.body)
            pen.line(_box(42, 4, 42, 80, shift), fill=look.detail, width=3 * _SCALE)


def _draw_lesions(pen: ImageDraw.ImageDraw, scene: Scene, rng: np.random.Generator) -> None:
    """Discs in different cells of the quadrant's 2 × 2 grid, never touching, in a glow that grows with them."""
    columns = (12, 26) if scene.side == Side.LEFT else (58, 72)
    rows = (14, 28) if scene.half == Half.UPPER else (56, 70)
    _disc(pen, sum(columns) / 2, sum(rows) / 2, GLOW_RADIUS, opacity=GLOW_PER_LESION * scene.num_lesions)
    for cell in rng.permutation(4)[: scene.num_lesions]:
        cx = columns[int(cell) % 2] + rng.uniform(-1.0, 1.0)
        cy = rows[int(cell) // 2] + rng.uniform(-1.0, 1.0)
        _disc(pen, cx, cy, rng.uniform(4.5, 5.5), opacity=1.0)


def _disc(pen: ImageDraw.ImageDraw, cx: float, cy: float, radius: float, *, opacity: float) -> None:
    box = [(cx - radius) * _SCALE, (cy - radius) * _SCALE, (cx + radius) * _SCALE, (cy + radius) * _SCALE]
    pen.ellipse(box, fill=round(255 * opacity))


def _draw_marker(pen: ImageDraw.ImageDraw, look: _Look) -> None:
    """A grey bar in the middle, where no lesion lies."""
    pen.rectangle([34 * _SCALE, 36 * _SCALE, 50 * _SCALE, 41 * _SCALE], fill=look.detail)
