"""All that shows a run on Ray while it is under way, put together. Ray must be running."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mrpo.config import Config
from mrpo.faults import FaultLog
from mrpo.telemetry.exporter import RayExporter
from mrpo.telemetry.provision import put_beside_rays
from mrpo.telemetry.queues import QueueWatch
from mrpo.telemetry.stages import Stages, timeline_mark
from mrpo.telemetry.table import Reading
from mrpo.telemetry.timeline import TRIES, TRIES_EARLY, keep_timeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a controller is given. Composition root → controller."""

    watcher: RayExporter
    span: Callable[[str], AbstractContextManager[object]]
    queue_metrics: Callable[[], Mapping[str, float]]


@asynccontextmanager
async def running_telemetry(
    config: Config, run: Path, look: Callable[[], Sequence[Reading]], *, faults: FaultLog, step: int
) -> AsyncIterator[Telemetry]:
    """Show a run on Ray's metrics endpoint and timeline until the context is left.

    The timeline of a Ray that ends with the run is kept in its folder, however the run ends.

    Args:
        config: of the run.
        run: its folder, whose name is a label.
        look: the lengths of its queues now.
        faults: of the run, counted as they happen.
        step: steps done, from which it goes on.
    """
    import ray

    _show_dashboard()
    exporter = RayExporter(experiment=config.experiment, run=run.name, num_steps=config.num_steps, step=step)
    stages = Stages(exporter, timeline_mark)
    queues = QueueWatch(look, exporter, refresh=exporter.refresh)
    tries = TRIES_EARLY
    try:
        with faults.told_to(exporter):
            async with queues.running():
                yield Telemetry(watcher=exporter, span=stages.span, queue_metrics=queues.take_metrics)
        tries = TRIES
    finally:
        if config.cluster.address is None and stages.ended and ray.is_initialized():
            await keep_timeline(run, stages.ended, ray.timeline, tries=tries)


def _show_dashboard() -> None:
    """Put our dashboard where the Grafana of this Ray looks for dashboards, if that is on this machine."""
    from ray._private.worker import global_worker

    try:
        put_beside_rays(Path(global_worker.node.get_session_dir_path()))
    except OSError as error:  # another user's Ray, say: the run does not depend on it
        logger.warning("Grafana does not get the dashboard of this run from Ray's folder: %s", error)
