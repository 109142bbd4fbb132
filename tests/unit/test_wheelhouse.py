"""A wheelhouse: what is missing, parts and back, and every damage named before anything is installed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from mrpo.errors import DataError
from mrpo.wheelhouse import __main__ as wheelhouse
from mrpo.wheelhouse import glibc
from mrpo.wheelhouse.__main__ import make, open_up
from mrpo.wheelhouse.manifest import Manifest, facts_of, read_manifest, this_python
from mrpo.wheelhouse.parts import pack, require_whole, unpack
from mrpo.wheelhouse.pins import Pin, read_pins, without_wheel
from tests.locations import REPOSITORY

PINS = [Pin("some-tool", "1.0"), Pin("other", "2.1")]
SIZES = {"some_tool-1.0-py3-none-any.whl": 3000, "other-2.1-cp311-cp311-linux_x86_64.whl": 70_000}


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, (name, size) in enumerate(sorted(SIZES.items())):
        (folder / name).write_bytes(bytes((number + index * index) % 251 for index in range(size)))
    return sorted(folder.iterdir())


@pytest.fixture
def house(tmp_path: Path, wheels: list[Path]) -> Path:
    folder = tmp_path / "house"
    folder.mkdir()
    python, platform = this_python()
    facts = tuple(facts_of(wheel) for wheel in wheels)
    parts = tuple(pack(wheels, folder, 20_000))
    Manifest(device="cpu", python=python, platform=platform, glibc="2.17", parts=parts, wheels=facts).write(folder)
    return folder


def test_pins_are_read_and_compared_as_packages_are_named(tmp_path: Path) -> None:
    file = tmp_path / "cpu.txt"
    file.write_text("# tools\nSome_Tool==1.0  # comment\n\nother==2.1\n")
    assert read_pins([file]) == PINS


@pytest.mark.parametrize("line", ["other", "other>=2", "-r more.txt", "other @ http://host/x.whl"])
def test_what_is_no_pin_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "cpu.txt").write_text(f"some-tool==1.0\n{line}\n")
    with pytest.raises(DataError, match="line 2"):
        read_pins([tmp_path / "cpu.txt"])


def test_every_requirement_of_the_project_is_a_pin() -> None:
    for device in ("cpu", "gpu"):
        assert len(read_pins([REPOSITORY / "requirements" / f"{device}.txt"])) > 200
    assert [pin.name for pin in read_pins([REPOSITORY / "requirements" / "tools.txt"])] == ["uv"]


def test_a_wheel_counts_for_its_version_with_and_without_the_builds_name() -> None:
    assert without_wheel([Pin("torch", "2.11.0")], ["torch-2.11.0+cpu-cp311-cp311-linux_x86_64.whl"]) == []
    assert without_wheel([Pin("torch", "2.11.0+cpu")], ["torch-2.11.0-cp311-cp311-linux_x86_64.whl"]) != []
    assert without_wheel(PINS, list(SIZES)[:1]) == [Pin("other", "2.1")]


def test_parts_have_the_size_asked_for_and_the_same_wheels_give_the_same_parts(tmp_path: Path, house: Path) -> None:
    parts = read_manifest(house).parts
    assert [part.size for part in parts[:-1]] == [20_000] * (len(parts) - 1)
    assert len(parts) >= 4
    for part in parts:
        assert hashlib.sha256((house / part.name).read_bytes()).hexdigest() == part.sha256
    again = tmp_path / "again"
    again.mkdir()
    os.utime(next((tmp_path / "wheels").iterdir()), (1, 1))
    assert tuple(pack(sorted((tmp_path / "wheels").iterdir()), again, 20_000)) == parts


def test_wheels_come_back_as_they_were(tmp_path: Path, house: Path, wheels: list[Path]) -> None:
    open_up(house, PINS, device="cpu", target=tmp_path / "out")
    assert [(path.name, path.read_bytes()) for path in sorted((tmp_path / "out").iterdir())] == [
        (path.name, path.read_bytes()) for path in wheels
    ]


def test_a_damaged_and_a_missing_part_are_named(house: Path) -> None:
    manifest = read_manifest(house)
    damaged = house / "part-0002"
    content = bytearray(damaged.read_bytes())
    content[777] ^= 1
    damaged.write_bytes(content)
    (house / "part-0003").unlink()
    with pytest.raises(DataError, match="part-0002 is damaged; part-0003 is missing"):
        require_whole(house, manifest.parts)


def test_a_wheel_that_is_not_the_manifests_is_refused(tmp_path: Path, house: Path) -> None:
    manifest = json.loads((house / "manifest.json").read_text())
    manifest["wheels"][0]["sha256"] = "0" * 64
    (house / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="is not what the manifest says"):
        open_up(house, PINS, device="cpu", target=tmp_path / "out")


def test_a_name_that_leads_elsewhere_is_not_written(tmp_path: Path) -> None:
    folder, target = tmp_path / "house", tmp_path / "out"
    folder.mkdir()
    target.mkdir()
    with tarfile.open(folder / "part-0001", "w") as stream:
        member = tarfile.TarInfo("../evil-1.0-py3-none-any.whl")
        member.size = 4
        stream.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(DataError, match="is no wheel"):
        unpack(folder, [facts_of(folder / "part-0001")], [], target)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": "gpu"}, "for device gpu, and this is cpu; set DEVICE=gpu"),
        ({"python": "3.9"}, r"for Python 3\.9"),
        ({"platform": "linux-riscv64"}, "for platform linux-riscv64"),
        ({"glibc": "9.1"}, r"needs glibc 9\.1 or newer, and this machine has \d"),
        ({"format": 9}, "format 9"),
        ({"parts": 3}, "damaged"),
    ],
)
def test_a_wheelhouse_for_something_else_is_refused(
    tmp_path: Path, house: Path, change: dict[str, object], said: str
) -> None:
    content = json.loads((house / "manifest.json").read_text())
    (house / "manifest.json").write_text(json.dumps(content | change))
    with pytest.raises(DataError, match=said):
        open_up(house, PINS, device="cpu", target=tmp_path / "out")


@pytest.mark.parametrize(
    ("tags", "needed"),
    [
        (["py3-none-any"], ""),
        (["py3-none-any", "cp311-cp311-manylinux2014_x86_64"], "2.17"),
        (["cp311-cp311-manylinux_2_5_x86_64.manylinux1_x86_64", "cp39-abi3-manylinux_2_12_x86_64"], "2.12"),
        (["cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64", "cp39-abi3-manylinux_2_9_x86_64"], "2.17"),
        (["cp311-cp311-manylinux_2_17_x86_64.manylinux_2_28_x86_64.musllinux_1_1_x86_64"], "2.17"),
        (["cp311-cp311-linux_x86_64", "cp311-cp311-manylinux_2_28_x86_64"], "2.40"),
    ],
)
def test_the_glibc_that_wheels_need_is_the_newest_of_their_oldest(
    tags: list[str], needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glibc, "own_glibc", lambda: (2, 40))  # where the wheel without a version was built
    assert glibc.needed_glibc([f"some_tool-1.0-{tag}.whl" for tag in tags]) == needed


def test_what_another_python_left_unfinished_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, platform = this_python()
    monkeypatch.setattr(wheelhouse, "this_python", lambda: ("3.9", platform))

    def interrupted(pins: object, folder: Path) -> list[Path]:
        (folder / "other-2.1-cp39-cp39-linux_x86_64.whl").write_bytes(b"of 3.9")
        raise KeyboardInterrupt

    monkeypatch.setattr(wheelhouse, "gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, PINS, device="cpu", part_mib=1)

    def gathered(pins: object, folder: Path) -> list[Path]:
        assert not list(folder.iterdir())
        for name in SIZES:
            (folder / name).write_bytes(b"of this Python")
        return sorted(folder.iterdir())

    monkeypatch.setattr(wheelhouse, "this_python", lambda: (python, platform))
    monkeypatch.setattr(wheelhouse, "gather", gathered)
    manifest = make(tmp_path, PINS, device="cpu", part_mib=1)
    assert [wheel.name for wheel in manifest.wheels] == sorted(SIZES)
    assert manifest.glibc == ".".join(map(str, glibc.own_glibc()))  # of the wheel that was built here
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "part-0001"]  # nothing else to carry


def test_a_wheelhouse_of_older_requirements_is_refused(tmp_path: Path, house: Path) -> None:
    with pytest.raises(DataError, match=r"lacks third==3 \(1 in all\)"):
        open_up(house, [*PINS, Pin("third", "3")], device="cpu", target=tmp_path / "out")


def test_an_unfinished_one_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished wheelhouse"):
        read_manifest(tmp_path)


def test_a_finished_one_is_checked_and_left_alone(house: Path) -> None:
    before = (house / "manifest.json").stat().st_mtime_ns
    assert make(house, PINS, device="cpu", part_mib=1) == read_manifest(house)
    assert (house / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="choose another OUT"):
        make(house, [*PINS, Pin("third", "3")], device="cpu", part_mib=1)


def test_it_runs_on_a_bare_python() -> None:
    """Before anything is installed there is nothing but the standard library."""
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"]
    command[-1] += "import mrpo.wheelhouse.__main__"
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
