"""Files of lines: what is whole is read, and a torn end is told apart and dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrpo.json_lines import Lines, append, drop_torn_line, read_lines


@pytest.mark.parametrize(
    ("data", "whole", "torn"),
    [
        (b"", [], b""),
        (b"a\nb\n", [b"a", b"b"], b""),
        (b"a\nb", [b"a"], b"b"),
        (b"a", [], b"a"),
        (b"a\n\n", [b"a", b""], b""),
        ("a\n\u00e9\u2028".encode(), [b"a"], "\u00e9\u2028".encode()),
    ],
)
def test_whole_lines_and_a_torn_one(tmp_path: Path, data: bytes, whole: list[bytes], torn: bytes) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(data)
    assert read_lines(path) == Lines(whole=whole, torn=torn)
    assert drop_torn_line(path) == bool(torn)
    assert path.read_bytes() == data[: len(data) - len(torn)]
    assert not drop_torn_line(path)


@pytest.mark.parametrize("sync", [False, True])
def test_lines_go_behind_the_last_whole_one(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "f.jsonl"
    append(path, "a\n\u00e9\n", sync=sync)
    assert path.read_bytes() == "a\n\u00e9\n".encode()
    path.write_bytes(b"a\nb")
    append(path, "c\n", sync=sync)
    assert path.read_bytes() == b"a\nc\n"


def test_no_file_is_no_lines_and_is_not_made(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none") == Lines(whole=[], torn=b"")
    assert not drop_torn_line(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
