"""Adapters to the engines, beside the base weights that each engine has loaded itself.

An adapter is small (tens of MB for an 8B model), so that it travels through Ray's object store to whatever node an
engine is on: no shared folder, no GPU group, and base weights are never sent.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from learner.lora import write_adapter
from learner.weight_sync import SyncStats

if TYPE_CHECKING:
    from learner.rank import Rank


class AdapterClient(Protocol):
    """The engines' side; the call returns when every engine runs on the adapter."""

    def load_adapter(self, files: dict[str, bytes]) -> None: ...


class AdapterSender:
    """A `learner.weight_sync.WeightSender`. All ranks gather the adapter, rank 0 sends it."""

    def __init__(self, client: AdapterClient, rank: Rank) -> None:
        self._client = client
        self._rank = rank

    def connect(self) -> None:
        """Engines need no preparation."""

    def send(self) -> SyncStats:
        """Send the current adapter.

        Raises:
            WeightSyncError: an engine refused it.
        """
        started = time.perf_counter()
        is_sender = self._rank.rank == 0
        with tempfile.TemporaryDirectory(prefix="mrpo-adapter-") as folder:
            num_bytes = write_adapter(self._rank, Path(folder))
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()} if is_sender else {}
        if is_sender:
            self._client.load_adapter(files)
        return SyncStats(num_bytes=num_bytes, num_buckets=1, seconds=time.perf_counter() - started)

    def close(self) -> None:
        """Nothing is held between updates."""
