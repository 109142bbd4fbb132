"""TensorBoard files of a run, for a machine without any service: `tensorboard --logdir runs`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpo.errors import ConfigError

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"  # in the run folder
FILES = "events.out.tfevents.*"
TRAINING = "time/step_s"  # which only the numbers of a training step have


class TensorBoardTracker:
    """A `mrpo.tracking.Tracker` with the names, steps and digits of `metrics.jsonl`.

    Numbers are written as float64; the library's own scalars are float32. Steps that are done again after a resume or
    a rewind replace those on file: TensorBoard drops what earlier event files have from there on.
    """

    def __init__(self, folder: Path) -> None:
        """Write nothing yet.

        Args:
            folder: of the run.

        Raises:
            ConfigError: the tensorboardX package is not installed.
        """
        try:
            import tensorboardX
            import tensorboardX.event_file_writer
        except ImportError:
            raise ConfigError(
                'tensorboard.enabled=true needs the tensorboardX package: pip install "mrpo[tensorboard]", or set '
                "tensorboard.enabled=false"
            ) from None
        self._package: Any = tensorboardX
        self._folder = folder / FOLDER
        self._writer: Any = None
        self._last_step = 0
        self._has_failed = False

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the numbers of one training step."""
        if TRAINING not in metrics:
            self._write(step, metrics, replaces_from=step + 1)
            return
        if step <= self._last_step:
            self.finish()  # the run was rewound: a new file says from where
        self._last_step = step
        self._write(step, metrics, replaces_from=step)

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Write the numbers of one evaluation."""
        self._write(step, metrics, replaces_from=step + 1)

    def finish(self, *, failed: bool = False) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, step: int, metrics: Mapping[str, float], *, replaces_from: int) -> None:
        """Append an event; a file begun here replaces what others have from a step on."""
        if self._has_failed:
            return
        proto = self._package.proto
        summary = proto.summary_pb2.Summary(value=[self._value(name, value) for name, value in metrics.items()])
        try:
            if self._writer is None:
                self._writer = self._begin(replaces_from)
            self._writer.write_event(proto.event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
            self._writer.flush()
        except OSError as error:  # a tracker must not end a run: all that it gets is in metrics.jsonl too
            self._has_failed = True
            logger.error("no more TensorBoard files of this run: cannot write to %s: %s", self._folder, error.strerror)

    def _begin(self, replaces_from: int) -> Any:
        """A new event file, and word of what it replaces."""
        self._folder.mkdir(exist_ok=True)
        number = len(list(self._folder.glob(FILES)))  # two may begin within a second, which is all that names tell
        writer = self._package.event_file_writer.EventsWriter(str(self._folder / "events"), f".{number}")
        event_pb2 = self._package.proto.event_pb2
        log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # The first one that TensorBoard meets is a run's beginning, each further one a restart that drops steps.
        step = replaces_from if number else 0
        writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, session_log=log))
        return writer

    def _value(self, name: str, value: float) -> Any:
        proto = self._package.proto
        metadata = proto.summary_pb2.SummaryMetadata
        return proto.summary_pb2.Summary.Value(
            tag=name,
            tensor=proto.tensor_pb2.TensorProto(dtype="DT_DOUBLE", double_val=[value]),
            metadata=metadata(plugin_data=metadata.PluginData(plugin_name="scalars")),
        )
