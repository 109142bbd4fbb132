"""`python -m mrpo.wheelhouse gather|unpack`: make a wheelhouse, or take one apart for `make setup WHEELHOUSE=…`.

Exit codes: 0 done, 1 the disk or the network failed, 2 something the user can mend (one line says what).
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mrpo.errors import DataError, ResourceError, UserError
from mrpo.wheelhouse.gather import gather
from mrpo.wheelhouse.glibc import needed_glibc, own_glibc, version_of
from mrpo.wheelhouse.manifest import NAME, Manifest, facts_of, read_manifest, this_python
from mrpo.wheelhouse.parts import pack, require_whole, unpack
from mrpo.wheelhouse.pins import Pin, read_pins, without_wheel

logger = logging.getLogger(__name__)

MIB = 2**20
WHEELS = "wheels"
UNFINISHED = "unfinished"  # begins the name of a folder under the wheelhouse, while it is made
USER_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    """Run one of the two; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="mrpo.wheelhouse")
    parser.add_argument("action", choices=("gather", "unpack"))
    parser.add_argument("folder", type=Path, help="the wheelhouse")
    parser.add_argument("--requirements", type=Path, nargs="+", required=True)
    parser.add_argument("--device", default="cpu", help="gather: recorded in the manifest; unpack: must be the same")
    parser.add_argument("--part-mib", type=int, default=1024, help="gather: size of a part")
    parser.add_argument("--into", type=Path, help="unpack: folder for the wheels")
    given = parser.parse_args(arguments)
    try:
        pins = read_pins(given.requirements)
        if given.action == "gather":
            make(given.folder, pins, device=given.device, part_mib=given.part_mib)
        else:
            open_up(given.folder, pins, device=given.device, target=given.into or given.folder / WHEELS)
    except UserError as error:
        logger.error("error: %s", error)
        return USER_ERROR
    except OSError as error:
        logger.error("error: %s", error)
        return 1
    return 0


def make(folder: Path, pins: Sequence[Pin], *, device: str, part_mib: int) -> Manifest:
    """Gather wheels of `pins` and pack them into parts; what is whole already is left alone.

    Args:
        folder: of the wheelhouse, made where needed.
        pins: what is installed.
        device: cpu or gpu, for the manifest.
        part_mib: size of a part, MiB.

    Raises:
        DataError: a wheel cannot be had.
        ResourceError: the disk has no room for the parts beside the wheels.
    """
    if part_mib < 1:
        raise DataError(f"PART_MIB={part_mib}: a part holds at least 1 MiB")
    if (folder / NAME).exists():
        manifest = read_manifest(folder)
        python, _ = this_python()
        same = manifest.device == device and manifest.python == python
        same = same and all(part.size <= part_mib * MIB for part in manifest.parts)
        if same and not without_wheel(pins, [wheel.name for wheel in manifest.wheels]):
            require_whole(folder, manifest.parts)
            _say(folder, manifest)
            return manifest
        raise DataError(
            f"{folder} is a wheelhouse of other packages, larger parts, another device or Python; choose another OUT"
        )
    python, platform = this_python()
    # Another Python, or a machine with another glibc, would get other wheels: none of those counts as there.
    wheels_folder = folder / "-".join((UNFINISHED, python, platform, *map(str, own_glibc())))
    wheels_folder.mkdir(parents=True, exist_ok=True)
    wheels = gather(pins, wheels_folder)
    for leftover in folder.glob("part-*"):
        leftover.unlink()
    _require_room(folder, wheels)
    logger.info("packing %d wheels", len(wheels))
    parts = pack(wheels, folder, part_mib * MIB)
    facts = tuple(facts_of(wheel) for wheel in wheels)
    glibc = needed_glibc(wheel.name for wheel in facts)
    manifest = Manifest(device=device, python=python, platform=platform, glibc=glibc, parts=tuple(parts), wheels=facts)
    manifest.write(folder)
    for unfinished in folder.glob(f"{UNFINISHED}-*"):
        shutil.rmtree(unfinished)
    _say(folder, manifest)
    return manifest


def open_up(folder: Path, pins: Sequence[Pin], *, device: str, target: Path) -> None:
    """Check a wheelhouse, part by part and wheel by wheel, and leave its wheels in `target`.

    Raises:
        DataError: it is damaged, unfinished, for another Python or machine, or lacks one of `pins`.
    """
    manifest = read_manifest(folder)
    python, platform = this_python()
    for what, theirs, ours, remedy in (
        ("device", manifest.device, device, f"set DEVICE={manifest.device}"),
        ("Python", manifest.python, python, f"set PYTHON=<path of a {manifest.python}>"),
        ("platform", manifest.platform, platform, "make one on such a machine"),
    ):
        if theirs != ours:
            raise DataError(f"wheelhouse {folder} is for {what} {theirs}, and this is {ours}; {remedy}")
    if own_glibc() < version_of(manifest.glibc):
        raise DataError(
            f"wheelhouse {folder} needs glibc {manifest.glibc} or newer, and this machine has "
            f"{'.'.join(map(str, own_glibc())) or 'none'}; make one on a machine with an older system"
        )
    lacking = without_wheel(pins, [wheel.name for wheel in manifest.wheels])
    if lacking:
        raise DataError(
            f"wheelhouse {folder} lacks {', '.join(map(str, lacking[:3]))} ({len(lacking)} in all); "
            "it was made from other requirements: make it again from this checkout"
        )
    logger.info("checking %d parts", len(manifest.parts))
    require_whole(folder, manifest.parts)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    unpack(folder, manifest.parts, manifest.wheels, target)
    logger.info("%d wheels are as %s says (SHA-256 %s)", len(manifest.wheels), NAME, facts_of(folder / NAME).sha256)


def _require_room(folder: Path, wheels: Sequence[Path]) -> None:
    needed, free = sum(wheel.stat().st_size for wheel in wheels), shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder} has {free / MIB:,.0f} MiB free and its parts need {needed / MIB:,.0f}; make room"
        )


def _say(folder: Path, manifest: Manifest) -> None:
    size = sum(part.size for part in manifest.parts) / MIB
    logger.info(
        "%s: %d wheels for Python %s on %s%s in %d parts, %s MiB; its %s has SHA-256 %s",
        folder,
        len(manifest.wheels),
        manifest.python,
        manifest.platform,
        f" with glibc {manifest.glibc} or newer" if manifest.glibc else "",
        len(manifest.parts),
        f"{size:,.0f}",
        NAME,
        facts_of(folder / NAME).sha256,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
