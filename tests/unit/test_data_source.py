"""What lies in a source folder and is no regular file of it: never opened, always told, nothing of it shown."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mrpo.data.funnel import Funnel
from mrpo.data.source import SourceTree
from mrpo.errors import DataError
from tests.unit.prepared_sets import rows_of, run, write_image, write_json, write_zip

SECRET = b"root:x:0:0"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One good image and a question about it, and one about odd.png, which each test makes."""
    root = tmp_path / "set"
    write_image(root / "images" / "a.png", 1)
    rows = [{"image": f"images/{name}.png", "problem": "Which?", "solution": "this"} for name in ("a", "odd")]
    write_json(root / "test.json", rows)
    return root


def pipe(place: Path) -> None:
    os.mkfifo(place)


def bound_socket(place: Path) -> None:
    folder = os.open(place.parent, os.O_RDONLY)  # the address of a socket is short, so name it relative to its folder
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(f"/proc/self/fd/{folder}/{place.name}")
    os.close(folder)


def link_out(place: Path) -> None:
    secret = place.parents[2] / "secret"
    secret.write_bytes(SECRET)
    place.symlink_to(secret)


def link_by_folders(place: Path) -> None:
    link_out(place.with_name("first.png"))
    place.symlink_to("first.png")


def link_to_nothing(place: Path) -> None:
    place.symlink_to("absent.png")


def link_in_a_loop(place: Path) -> None:
    place.symlink_to(place.name)


def link_to_a_folder(place: Path) -> None:
    place.symlink_to(".")


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (pipe, "is no regular file"),
        (bound_socket, "is no regular file"),
        (link_out, "is a symbolic link that leaves the folder"),
        (link_by_folders, "is a symbolic link that leaves the folder"),
        (link_to_nothing, "is a symbolic link to nothing"),
        (link_in_a_loop, "is a symbolic link to nothing"),
        (link_to_a_folder, "is a symbolic link to a folder"),
    ],
)
def test_what_is_no_file_of_the_folder_is_passed_over_and_told(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None], fault: str
) -> None:
    make(source / "images" / "odd.png")
    with pytest.raises(
        DataError, match=rf"test\.json, row 2: image 'images/odd\.png': images/odd\.png {fault}"
    ) as caught:
        run(source, tmp_path / "out", "published")
    assert f"passed over: images/odd.png {fault}" in caplog.text
    prepared = run(source, tmp_path / "out", "published", max_bad_rows=1)
    assert len(rows_of(tmp_path / "out", "test")) == 1
    assert any(line.startswith(f"images/odd.png {fault}") for line in prepared.manifest["passed_over"])
    told = str(caught.value) + caplog.text + (tmp_path / "out" / "manifest.json").read_text()
    assert "root:" not in told


def test_a_link_within_the_folder_is_followed(source: Path, tmp_path: Path) -> None:
    (source / "images" / "odd.png").symlink_to("a.png")
    prepared = run(source, tmp_path / "out", "published")
    assert len(rows_of(tmp_path / "out", "test")) == 2
    assert prepared.manifest["passed_over"] == []


def test_images_in_a_linked_folder_are_said_to_lie_there(source: Path, tmp_path: Path) -> None:
    (source / "images").rename(tmp_path / "elsewhere")
    (source / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"row 1: image 'images/a\.png': images is a symbolic link that leaves the folder"
    ):
        run(source, tmp_path / "out", "published")


def test_archives_that_are_no_files_of_the_folder_are_not_opened(source: Path, tmp_path: Path) -> None:
    """A broken link was once taken for an output that cannot be written."""
    write_image(source / "images" / "odd.png", 2)
    (source / "y.zip").symlink_to("absent.zip")
    write_zip(tmp_path / "other.zip", {"images/b.png": b"x"})
    (source / "z.zip").symlink_to(tmp_path / "other.zip")
    with SourceTree(source) as tree:
        assert sorted(tree.passed_over) == ["y.zip", "z.zip"]
        assert tree.matching("b.png") == []
    assert len(rows_of(run(source, tmp_path / "out", "published").out, "test")) == 2


def test_addresses_in_messages_stay_as_they_are(tmp_path: Path) -> None:
    funnel = Funnel(root=tmp_path, max_bad_rows=0)
    with pytest.raises(DataError) as caught:
        funnel.report("a.json", 3, "image 'https://host/a//b.png' is not in the source folder")
    assert str(caught.value).startswith(f"{tmp_path}/a.json, row 3: image 'https://host/a//b.png' is not in")
