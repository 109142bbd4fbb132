"""All that shows a run on Ray while it is under way, put together. Ray must be running."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass

from mrpo.config import Config
from mrpo.telemetry.exporter import RayExporter
from mrpo.telemetry.queues import QueueWatch
from mrpo.telemetry.stages import Stages, timeline_mark
from mrpo.telemetry.table import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a controller is given. Composition root → controller."""

    watcher: RayExporter
    span: Callable[[str], AbstractContextManager[object]]
    queue_metrics: Callable[[], Mapping[str, float]]


@asynccontextmanager
async def running_telemetry(
    config: Config, run: str, look: Callable[[], Sequence[Reading]]
) -> AsyncIterator[Telemetry]:
    """Show a run on Ray's metrics endpoint and timeline until the context is left.

    Args:
        config: of the run.
        run: the name of its folder.
        look: the lengths of its queues now.
    """
    exporter = RayExporter(experiment=config.experiment, run=run, num_steps=config.num_steps)
    stages = Stages(exporter, timeline_mark)
    queues = QueueWatch(look, exporter, refresh=exporter.refresh)
    async with queues.running():
        yield Telemetry(watcher=exporter, span=stages.span, queue_metrics=queues.take_metrics)
