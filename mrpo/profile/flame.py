"""Frames as collapsed stacks, which flame-graph tools read, and as a picture of their own. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from html import escape

from mrpo.profile.frames import Frame

WIDTH, ROW, LETTER, TOP = 1200.0, 16, 6.4, 24  # pixels: the picture, a frame's height, a letter, the title
DEPTH = 120  # rows


def collapsed(root: Frame) -> str:
    """A line a stack: names from the root down, semicolons between them, and own microseconds."""
    rows = [f"{';'.join(path)} {round(frame.self_us)}" for path, frame in root.walk() if round(frame.self_us)]
    return "".join(f"{row}\n" for row in rows)


def flame_svg(root: Frame, title: str, *, min_share: float) -> str:
    """A flame graph that hangs down: a frame is as wide as its time, its callees stand below it, the longest first.

    Args:
        root: whose time is the whole width.
        title: above the picture.
        min_share: of the whole, below which a frame is left out with all it called.
    """
    boxes = list(_boxes(root, left=0.0, depth=0, scale=WIDTH / max(root.total_us, 1e-9), least=min_share * WIDTH))
    height = TOP + ROW * (1 + max(depth for *_, depth in boxes))
    drawn = "\n".join(_box(frame, left, width, depth, root.total_us) for frame, left, width, depth in boxes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:.0f}" height="{height}" '
        f'font-family="monospace" font-size="11">\n<text x="4" y="16">{escape(title)}</text>\n{drawn}\n</svg>\n'
    )


def _boxes(
    frame: Frame, *, left: float, depth: int, scale: float, least: float
) -> Iterator[tuple[Frame, float, float, int]]:
    yield frame, left, frame.total_us * scale, depth
    if depth == DEPTH:
        return
    for child in sorted(frame.children.values(), key=lambda child: -child.total_us):
        width = child.total_us * scale
        if width < least:
            return
        yield from _boxes(child, left=left, depth=depth + 1, scale=scale, least=least)
        left += width


def _box(frame: Frame, left: float, width: float, depth: int, whole_us: float) -> str:
    shade = zlib.crc32(frame.name.encode())
    hue = 20 + shade % 35 if "::" in frame.name else 190 + shade % 50  # operators warm, Python cold
    top = TOP + ROW * depth
    share = frame.total_us / max(whole_us, 1e-9)
    told = f"{frame.name}: {frame.total_us / 1e3:.1f} ms ({share:.1%}), {frame.calls} calls"
    letters = int(width / LETTER)
    text = frame.name if len(frame.name) <= letters else frame.name[: max(0, letters - 1)] + "…"
    label = f'<text x="{left + 2:.1f}" y="{top + 12}">{escape(text)}</text>' if letters > 2 else ""
    return (
        f"<g><title>{escape(told)}</title>"
        f'<rect x="{left:.1f}" y="{top}" width="{max(width - 0.5, 0.2):.1f}" height="{ROW - 1}" '
        f'fill="hsl({hue},70%,75%)"/>{label}</g>'
    )
