"""All that shows a run on Ray while it is under way, put together. Ray must be running."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo.atomic import write_text
from mrpo.config import Config
from mrpo.telemetry.exporter import RayExporter
from mrpo.telemetry.provision import put_beside_rays
from mrpo.telemetry.queues import QueueWatch
from mrpo.telemetry.stages import Stages, timeline_mark
from mrpo.telemetry.table import Reading

logger = logging.getLogger(__name__)

TIMELINE = "logs/timeline.json"  # in the run folder
FLUSH_S, FLUSH_TRIES = 0.5, 20  # Ray's processes hand in their spans every second, a busy machine's later


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a controller is given. Composition root → controller."""

    watcher: RayExporter
    span: Callable[[str], AbstractContextManager[object]]
    queue_metrics: Callable[[], Mapping[str, float]]


@asynccontextmanager
async def running_telemetry(
    config: Config, run: Path, look: Callable[[], Sequence[Reading]]
) -> AsyncIterator[Telemetry]:
    """Show a run on Ray's metrics endpoint and timeline until the context is left.

    The timeline of a Ray that ends with the run is kept in its folder, where the run came to its end.

    Args:
        config: of the run.
        run: its folder, whose name is a label.
        look: the lengths of its queues now.
    """
    _show_dashboard()
    exporter = RayExporter(experiment=config.experiment, run=run.name, num_steps=config.num_steps)
    stages = Stages(exporter, timeline_mark)
    queues = QueueWatch(look, exporter, refresh=exporter.refresh)
    async with queues.running():
        yield Telemetry(watcher=exporter, span=stages.span, queue_metrics=queues.take_metrics)
    if config.cluster.address is None and stages.num_ended:
        await _keep_timeline(run / TIMELINE, stages.num_ended)


def _show_dashboard() -> None:
    """Put our dashboard where the Grafana of this Ray looks for dashboards, if that is on this machine."""
    from ray._private.worker import global_worker

    try:
        put_beside_rays(Path(global_worker.node.get_session_dir_path()))
    except OSError as error:  # another user's Ray, say: the run does not depend on it
        logger.warning("Grafana does not get the dashboard of this run from Ray's folder: %s", error)


async def _keep_timeline(path: Path, num_spans: int) -> None:
    """Write what `ray timeline` writes, for ui.perfetto.dev or chrome://tracing, once it has all spans of this process.

    Args:
        path: in a folder that is there.
        num_spans: that ended.
    """
    import ray

    events: list[dict[str, Any]] = []
    for _ in range(FLUSH_TRIES):
        await asyncio.sleep(FLUSH_S)
        events = ray.timeline()
        if sum(event.get("cat") == event["name"] for event in events) >= num_spans:
            break
    else:
        logger.warning("%s has not all stages: Ray was slow to hand them in", path)
    write_text(path, json.dumps(events))
