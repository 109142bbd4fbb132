"""The folder of kept rulings: many writers, killed writers, a full disk, and its size."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from judge.accounting import KnownRuling
from judge.ruling_file import decode, encode
from judge.ruling_folder import RulingFolder
from tests.unit.kept_rulings import files_of


def test_a_full_disk_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RulingFolder(tmp_path / "c", max_mib=1)
    folder.write("a" * 64, b"x")
    monkeypatch.setattr("judge.ruling_folder.os.replace", _no_space)
    with pytest.raises(OSError, match="No space left"):
        folder.write("a" * 63 + "b", b"y")
    assert [file.name for file in files_of(tmp_path / "c")] == ["a" * 64]


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def _write_many(folder: str, number: int) -> None:
    """Half of the keys are every process's, half its own; all are read back, and read while others write them."""
    store = RulingFolder(Path(folder), max_mib=1024)
    for index in range(200):
        owner = "all" if index % 2 else str(number)
        key, entry = _entry(owner, index)
        store.write(key, entry)
        shared, _ = _entry("all", (index * 7) % 200 | 1)
        data = store.read(shared)
        if data is not None:
            decode(data, shared, num_steps=None)
        read = store.read(key)
        assert read is not None
        decode(read, key, num_steps=None)


def _entry(owner: str, index: int) -> tuple[str, bytes]:
    key = hashlib.sha256(f"{owner} {index}".encode()).hexdigest()
    return key, encode(key, KnownRuling(ruling=index % 3 == 0, model="m" * 2000), rubric="1")


@pytest.mark.timeout(180)
def test_eight_processes_write_the_same_and_other_rulings_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(str(tmp_path / "c"), number)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    files = files_of(tmp_path / "c")
    assert len(files) == 8 * 100 + 100
    for file in files:
        decode(file.read_bytes(), file.name, num_steps=None)


def _write_for_ever(folder: str, started: Any) -> None:
    store = RulingFolder(Path(folder), max_mib=1024)
    index = 0
    while True:
        store.write(*_entry("all", index % 50))
        index += 1
        if index == 20:
            started.set()


@pytest.mark.timeout(180)
def test_a_killed_writer_leaves_no_half_file_in_sight(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for round_number in range(3):
        started = context.Event()
        writer = context.Process(target=_write_for_ever, args=(str(tmp_path / "c"), started))
        writer.start()
        started.wait()
        time.sleep(0.01 * round_number)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    visible = [file for file in files_of(tmp_path / "c") if not file.name.startswith(".")]
    assert len(visible) >= 20
    for file in visible:
        decode(file.read_bytes(), file.name, num_steps=None)


def test_what_killed_writers_left_goes_after_an_hour(tmp_path: Path) -> None:
    folder = RulingFolder(tmp_path / "c", max_mib=1)
    folder.write("a" * 64, b"x")
    part = tmp_path / "c" / "aa"
    old, young = part / ".aaaaaaaa.1.dead.tmp", part / ".aaaaaaaa.2.beef.tmp"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 3601, time.time() - 3601))
    folder.trim(part)
    assert (old.exists(), young.exists(), (part / ("a" * 64)).exists()) == (False, True, True)


def disk_bytes(folder: Path) -> int:
    return sum(max(file.stat().st_size, file.stat().st_blocks * 512) for file in files_of(folder))


@pytest.mark.parametrize(("max_mib", "num_files"), [(1, 1000), (2, 1500)])
def test_the_folder_keeps_to_its_size(tmp_path: Path, max_mib: int, num_files: int) -> None:
    folder = RulingFolder(tmp_path / "c", max_mib=max_mib)
    for index in range(num_files):
        folder.write(*_entry("all", index))
    assert 0.4 * max_mib * 2**20 < disk_bytes(tmp_path / "c") <= max_mib * 2**20


def test_the_work_of_trimming_does_not_grow_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files listed per write, on average over the writes into one part that is full at 64 files (64 MiB) or 8."""
    listed: dict[int, float] = {}
    real = os.scandir
    for max_mib in (8, 64):
        count = 0

        def scandir(path: Any) -> Any:
            nonlocal count
            count += len(os.listdir(path))
            return real(path)

        folder = RulingFolder(tmp_path / str(max_mib), max_mib=max_mib)
        with monkeypatch.context() as patch:
            patch.setattr("judge.ruling_folder.os.scandir", scandir)
            for index in range(600):
                folder.write(f"{index:064x}", b"x")
        listed[max_mib] = count / 600
        assert len(files_of(tmp_path / str(max_mib))) <= max_mib * 1.5
    assert max(listed.values()) < 25


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    folder = RulingFolder(tmp_path / "c", max_mib=4)  # 4 blocks a part; 90 % of it is 3 files
    keys = [f"aa{index:062x}" for index in range(4)]
    now = time.time()
    for age, key in enumerate(keys):
        folder.write(key, b"x")
        os.utime(folder.file_of(key), (now - 9000 + age, now - 9000 + age))
    assert folder.read(keys[0]) == b"x"  # the oldest is used
    folder.write("aa" + "f" * 62, b"x")
    kept = [key for key in keys if folder.file_of(key).exists()]
    assert kept[0] == keys[0]
    assert keys[1] not in kept
    assert folder.file_of("aa" + "f" * 62).exists()
