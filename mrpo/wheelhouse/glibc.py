"""The system library that wheels ask for: pip and uv refuse one whose tag names a newer glibc than the host's."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable

MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_")  # PEP 600
OLDER = {"manylinux1_": (2, 5), "manylinux2010_": (2, 12), "manylinux2014_": (2, 17)}


def own_glibc() -> tuple[int, ...]:
    """Version of this machine's glibc; () where it has none."""
    name, version = platform.libc_ver()
    return version_of(version) if name == "glibc" else ()


def version_of(text: str) -> tuple[int, ...]:
    """2.34 as (2, 34); () of an empty text."""
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def needed_glibc(wheels: Iterable[str]) -> str:
    """The oldest glibc that all these wheel files run with, as 2.34; "" where they need none.

    A wheel that was built here (`linux_x86_64`) says nothing itself, and needs this machine's.
    """
    return ".".join(map(str, max(map(_needed, wheels), default=())))


def _needed(wheel: str) -> tuple[int, ...]:
    """Of several tags, as of 2.17 under its two names, the least counts."""
    tags = wheel.removesuffix(".whl").rsplit("-", 1)[1].split(".")
    found = [version for tag in tags for version in _version_of(tag)]
    return min(found, default=())


def _version_of(tag: str) -> list[tuple[int, ...]]:
    if match := MANYLINUX.match(tag):
        return [(int(match[1]), int(match[2]))]
    if tag.startswith("linux_"):
        return [own_glibc()]
    return [version for name, version in OLDER.items() if tag.startswith(name)]
