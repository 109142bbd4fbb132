"""Scalars of TensorBoard event files, read by the rules of its own reader."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_scalars(run: Path) -> dict[tuple[str, int], float]:
    """Values by name and step; what a later file replaces is gone."""
    from tensorboardX.proto import event_pb2

    found: dict[tuple[str, int], float] = {}
    num_starts = 0
    for path in sorted((run / "tensorboard").iterdir(), key=lambda item: int(item.suffix[1:])):
        for event in events(path):
            if event.HasField("session_log") and event.session_log.status == event_pb2.SessionLog.START:
                num_starts += 1
                if num_starts > 1:  # the first one is the beginning of the run
                    found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                (found[value.tag, event.step],) = value.tensor.double_val
    return found


def events(path: Path) -> Iterator[Any]:
    """The events of one file: length, its checksum, content, its checksum."""
    from tensorboardX.proto import event_pb2

    content, start = path.read_bytes(), 0
    while start < len(content):
        (length,) = struct.unpack("<Q", content[start : start + 8])
        yield event_pb2.Event.FromString(content[start + 12 : start + 12 + length])
        start += 16 + length
