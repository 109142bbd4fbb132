"""Cached folders: whole or absent, built once, also by several at a time."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from mrpo.cache import cached_folder
from mrpo.errors import ResourceError


def leftovers(parent: Path) -> list[str]:
    return [item.name for item in parent.iterdir() if item.name.startswith(".")]


def test_built_once_and_found_again(tmp_path: Path) -> None:
    builds: list[Path] = []

    def build(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        assert not target.exists(), "the name appears only when the content is whole"
        builds.append(folder)
        (folder / "file").write_text("content")

    target = tmp_path / "deep" / "cache" / "thing-1234"
    assert cached_folder(target, build) == cached_folder(target, build) == target
    assert len(builds) == 1
    assert (target / "file").read_text() == "content"
    assert leftovers(target.parent) == []


def test_others_may_read_it(tmp_path: Path) -> None:
    folder = cached_folder(tmp_path / "thing", lambda building: None)
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_failed_build_leaves_nothing_and_the_next_one_starts_anew(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        cached_folder(tmp_path / "thing", fail)
    assert list(tmp_path.iterdir()) == []
    folder = cached_folder(tmp_path / "thing", lambda building: (building / "whole").touch())
    assert [item.name for item in folder.iterdir()] == ["whole"]


def test_a_full_disk_is_an_error_the_user_can_mend(tmp_path: Path) -> None:
    def fill_up(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ResourceError, match=r"thing: .*No space left on device; free some space, or set cache_dir"):
        cached_folder(tmp_path / "thing", fill_up)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot write to .*file: .*set cache_dir"):
        cached_folder(tmp_path / "file" / "thing", lambda building: None)


def test_a_file_in_its_place_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "thing").touch()
    with pytest.raises(ResourceError, match="thing"):
        cached_folder(tmp_path / "thing", lambda building: None)
    assert leftovers(tmp_path) == []


def test_of_two_builders_the_first_to_finish_wins_and_both_get_its_work(tmp_path: Path) -> None:
    both_building = threading.Barrier(2, timeout=10)
    results: list[Path] = []

    def work(name: str) -> None:
        def build(folder: Path) -> None:
            (folder / name).touch()
            both_building.wait()

        results.append(cached_folder(tmp_path / "thing", build))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "thing"] * 2
    assert [item.name for item in (tmp_path / "thing").iterdir()] in (["one"], ["two"])
    assert leftovers(tmp_path) == []
