"""The folder of one check: what is measured, every ruling, and what came of them.

`<out>/`: `check.json` (what is measured), `rulings.jsonl` (a line a call, as they end), `judge_spending.jsonl`,
`result.json` and `report.html`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo.atomic import write_text
from mrpo.calibration.rulings import RULINGS_FILE, RulingFile, read_rulings
from mrpo.errors import ConfigError, DataError
from mrpo.identity_folder import leaves, make_folder
from mrpo.run_lock import LOCK_FILE, RunLock
from mrpo.types import Judgement

IDENTITY_FILE = "check.json"
RESULT_FILE = "result.json"


class CheckFolder:
    """A check's folder, open for writing by this process; use as a context manager."""

    def __init__(self, path: Path, rulings: RulingFile, lock: RunLock) -> None:
        """Use `open`."""
        self.path = path
        self.rulings = rulings
        self._lock = lock

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any]) -> CheckFolder:
        """Make the folder, or go on in it.

        Args:
            path: of the check.
            identity: what is measured, as JSON-like data; rulings under another one are not comparable.

        Raises:
            ConfigError: it holds another check or something else, or cannot be made.
            ResourceError: another process is writing it.
            DataError: a file in it is damaged.
        """
        file = path / IDENTITY_FILE
        make_folder(path, "check.out")
        if not file.is_file() and any(
            not item.name.startswith(".") and item.name != LOCK_FILE for item in path.iterdir()
        ):
            raise ConfigError(f"{path} is no folder of a judge check; set check.out=<new folder>")
        lock = RunLock.take(path)
        try:
            if file.is_file():
                _require_same(path, _read_identity(path), identity)
            else:
                write_text(file, json.dumps(identity, indent=2, ensure_ascii=False) + "\n")
            return cls(path, RulingFile(path / RULINGS_FILE), lock)
        except BaseException:
            lock.release()
            raise

    def write_result(self, result: Mapping[str, Any]) -> Path:
        """Write `result.json`."""
        path = self.path / RESULT_FILE
        write_text(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        return path

    def __enter__(self) -> CheckFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.rulings.close()
        self._lock.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierCheck:
    """A check that was made before, to compare with."""

    name: str
    identity: Mapping[str, Any]
    rulings: Mapping[str, Judgement]  # by key


def read_earlier(path: Path, labels_sha256: str) -> EarlierCheck:
    """Read an earlier check of the same labels.

    Raises:
        ConfigError: no folder of a check, or one of other labels.
        DataError: a file in it is damaged.
    """
    if not (path / IDENTITY_FILE).is_file():
        raise ConfigError(f"check.against={path}: no {IDENTITY_FILE} there; give the folder of an earlier judge check")
    identity = _read_identity(path)
    if identity.get("labels") != labels_sha256:
        raise ConfigError(
            f"check.against={path} was made with other labels; two judges are compared on the same ones: run both "
            "with the same LABELS"
        )
    return EarlierCheck(name=str(identity.get("name")), identity=identity, rulings=read_rulings(path / RULINGS_FILE))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, shared: bool = False) -> list[str]:
    """In what two identities differ, in words; names are not part of it.

    `shared`: leave out what only one of them has, as judges of two kinds have other settings.
    """
    old, new = dict(leaves(before)), dict(leaves(now))
    keys = [key for key in dict.fromkeys((*old, *new)) if key != "name" and old.get(key) != new.get(key)]
    if shared:
        keys = [key for key in keys if key in old and key in new]
    return [f"{key}: {new.get(key)!r}, was {old.get(key)!r}" for key in keys]


def _read_identity(path: Path) -> dict[str, Any]:
    try:
        identity = json.loads((path / IDENTITY_FILE).read_text(encoding="utf-8"))
        assert isinstance(identity, dict)
        return identity
    except (OSError, ValueError, AssertionError) as error:
        raise DataError(f"{path / IDENTITY_FILE} is damaged ({error}); set check.out=<new folder>") from None


def _require_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = differences(before, now)
    if changed:
        raise ConfigError(f"{path} holds a check with another {changed[0]}; set check.out=<new folder>")
