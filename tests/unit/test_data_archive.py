"""Archives that are broken or mean harm are refused by name; nothing is ever written where they say."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from mrpo.data.archive import member_fault
from mrpo.errors import DataError
from tests.unit.prepared_sets import image_bytes, rows_of, run, write_json, write_slake, write_zip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """SLAKE with its images in imgs.zip."""
    source = tmp_path / "slake"
    write_slake(source)
    return source


def refused(root: Path, tmp_path: Path, reason: str) -> None:
    with pytest.raises(DataError, match=rf"{root}/imgs\.zip .*{reason}"):
        run(root, tmp_path / "out", "slake")
    assert [item.name for item in tmp_path.iterdir()] == ["slake"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../evil.jpg", r"member '\.\./\.\./evil\.jpg' leaves the folder by '\.\.'"),
        ("imgs/../../evil.jpg", "leaves the folder"),
        ("..\\evil.jpg", "leaves the folder"),
        ("/etc/evil.jpg", "has an absolute path"),
        ("C:\\evil.jpg", "has an absolute path"),
    ],
)
def test_paths_that_leave_the_target(root: Path, tmp_path: Path, name: str, reason: str) -> None:
    write_zip(root / "imgs.zip", {"imgs/xmlab1/source.jpg": image_bytes(1), name: b"x"})
    refused(root, tmp_path, f"is refused: .*{reason}")


def test_a_name_with_a_nul() -> None:
    assert member_fault(zipfile.ZipInfo("imgs/a.jpg\0../evil")) == "has a NUL in its name"


def test_symbolic_links(root: Path, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("imgs/xmlab1/source.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(root / "imgs.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(root, tmp_path, "is a symbolic link")


def test_bombs(root: Path, tmp_path: Path) -> None:
    write_zip(root / "imgs.zip", {"imgs/xmlab1/source.jpg": bytes(8 * 2**20)})
    refused(root, tmp_path, r"unpacks \d+ bytes to 8388608, as a zip bomb does")
    huge = zipfile.ZipInfo("a")
    huge.file_size, huge.compress_size = 5 * 2**30, 5 * 2**30
    assert member_fault(huge) == f"unpacks to {5 * 2**30} bytes, more than {4 * 2**30}"


def test_encrypted_members() -> None:
    info = zipfile.ZipInfo("a.jpg")
    info.flag_bits |= 1
    assert member_fault(info) == "is encrypted"


def test_one_name_twice(root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(root / "imgs.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("imgs/xmlab1/source.jpg", b"1")
        archive.writestr("imgs/xmlab1/source.jpg", b"2")
    refused(root, tmp_path, r"holds 'imgs/xmlab1/source\.jpg' twice")


def test_half_downloaded_archives(root: Path, tmp_path: Path) -> None:
    whole = (root / "imgs.zip").read_bytes()
    (root / "imgs.zip").write_bytes(whole[: len(whole) // 2])
    refused(root, tmp_path, "is not a whole zip archive .*get it again")


def test_archives_that_are_lfs_pointers(root: Path, tmp_path: Path) -> None:
    (root / "imgs.zip").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 212000000\n")
    refused(root, tmp_path, "is a Git LFS pointer")


def test_a_damaged_member_is_a_bad_row(root: Path, tmp_path: Path) -> None:
    data = bytearray((root / "imgs.zip").read_bytes())
    place = data.index(b"imgs/xmlab1/source.jpg") + 60
    data[place : place + 40] = bytes(40)
    (root / "imgs.zip").write_bytes(data)
    with pytest.raises(
        DataError, match=r"train\.json, row 1: image 'xmlab1/source\.jpg': imgs/xmlab1/source\.jpg \(in"
    ):
        run(root, tmp_path / "out", "slake")


def test_what_file_managers_add_is_no_image(root: Path, tmp_path: Path) -> None:
    images = {f"imgs/xmlab{seed}/source.jpg": image_bytes(seed, "JPEG") for seed in (1, 2, 3)}
    write_zip(root / "imgs.zip", {**images, "__MACOSX/imgs/xmlab1/source.jpg": b"x", "imgs/xmlab1/._source.jpg": b"x"})
    assert len(rows_of(run(root, tmp_path / "out", "slake").out, "train")) == 1


def test_a_whole_set_in_one_archive(tmp_path: Path) -> None:
    source, packed = tmp_path / "slake", tmp_path / "packed"
    write_slake(source, zipped=False)
    files = {f"Slake1.0/{file.relative_to(source)}": file.read_bytes() for file in source.rglob("*.*")}
    write_zip(packed / "Slake.zip", files)
    prepared = run(packed, tmp_path / "out", "slake")
    assert list(prepared.manifest["inputs"]) == ["Slake.zip"]
    assert rows_of(tmp_path / "out", "train")[0]["image"] == "images/xmlab1/source.jpg"


def test_two_files_of_one_name_are_refused(root: Path, tmp_path: Path) -> None:
    (root / "train.json").rename(root.parent / "train.json")
    for folder in ("one", "two"):
        write_json(root / folder / "train.json", [])
    with pytest.raises(DataError, match=r"holds one/train\.json and two/train\.json; leave only the one"):
        run(root, tmp_path / "out", "slake")
