"""What is to be installed, and which wheel files are it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrpo.errors import DataError

PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)")


@dataclass(frozen=True, slots=True)
class Pin:
    """One package at one version, both in the form that file names are compared in."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def read_pins(files: Sequence[Path]) -> list[Pin]:
    """The pins of requirement files, in order.

    Raises:
        DataError: a file is not there, or a line is no `name==version`.
    """
    pins = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"cannot read requirements {file}: {error.strerror}") from None
        for number, line in enumerate(lines, start=1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            match = PIN.fullmatch(text)
            if match is None:
                raise DataError(f"{file}, line {number}: {text!r} is no pin; expected name==version")
            pins.append(Pin(_name(match[1]), match[2]))
    return pins


def pin_of(wheel: str) -> Pin:
    """The package and version that a wheel's file name says."""
    name, version = wheel.split("-")[:2]
    return Pin(_name(name), version)


def without_wheel(pins: Iterable[Pin], wheels: Iterable[str]) -> list[Pin]:
    """The pins that none of the wheel files is. A build's local version (`2.11.0+cpu`) is its public one too."""
    there = {pin_of(wheel) for wheel in wheels}
    there |= {Pin(pin.name, pin.version.partition("+")[0]) for pin in there}
    return [pin for pin in pins if pin not in there]


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
