"""One ruling as a small file: a line with the checksum of what follows, then JSON. Pure.

It holds marks and hashes alone: no question, no text of a policy, no patient's data, no key of an API.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from judge.accounting import KnownRuling
from mrpo.types import Verdicts


class CorruptRuling(ValueError):
    """A file that is not what `encode` wrote for this key; says why."""


def encode(key: str, known: KnownRuling, *, rubric: str) -> bytes:
    """The file's content."""
    entry: dict[str, Any] = {"key": key, "model": known.model, "rubric": rubric}
    if isinstance(known.ruling, Verdicts):
        entry |= {"alignment": _bits(known.ruling.alignment), "contribution": _bits(known.ruling.contribution)}
    else:
        entry["correct"] = _bits([known.ruling])
    payload = json.dumps(entry).encode("ascii")
    return _checksum(payload) + b"\n" + payload + b"\n"


def decode(data: bytes, key: str, *, num_steps: int | None) -> KnownRuling:
    """Read a file's content.

    Args:
        data: the content.
        key: of the ruling that is looked for.
        num_steps: K of a ruling on steps; None: on an answer.

    Raises:
        CorruptRuling: it is anything else than that ruling, whole.
    """
    checksum, separator, payload = data.partition(b"\n")
    if not separator or not payload.endswith(b"\n"):
        raise CorruptRuling("it is cut short")
    payload = payload[:-1]
    if checksum != _checksum(payload):
        raise CorruptRuling("its checksum is another")
    try:
        entry = json.loads(payload)
    except (ValueError, RecursionError):
        raise CorruptRuling("it is not JSON") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
        raise CorruptRuling("it is no ruling")
    if entry.get("key") != key:
        raise CorruptRuling("it belongs to another call")
    if num_steps is None:
        (correct,) = _marks(entry, "correct", 1)
        return KnownRuling(ruling=correct, model=entry["model"])
    verdicts = Verdicts(
        alignment=_marks(entry, "alignment", num_steps), contribution=_marks(entry, "contribution", num_steps)
    )
    return KnownRuling(ruling=verdicts, model=entry["model"])


def _bits(marks: Sequence[bool]) -> str:
    return "".join("1" if mark else "0" for mark in marks)


def _marks(entry: dict[str, Any], name: str, length: int) -> list[bool]:
    text = entry.get(name)
    if not isinstance(text, str) or set(text) - {"0", "1"}:
        raise CorruptRuling(f"its {name} is no string of 0 and 1")
    if len(text) != length:
        raise CorruptRuling(f"its {name} has {len(text)} marks, expected {length}")
    return [mark == "1" for mark in text]


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode("ascii")
