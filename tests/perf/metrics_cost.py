"""What metrics cost: CPU time of this process for a step's numbers, from completions to every place that shows them.

Ray is real and small, the step is made up: as many completions as a step of the phantom default has. Against the wall
time of such a step. What Ray's own processes take to pass numbers on is theirs, every 10 s whatever a step takes.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mrpo.choices import WandbMode
from mrpo.config import TensorBoardConfig, WandbConfig
from mrpo.metrics import step_distributions, step_metrics
from mrpo.scoring import ScoredTrace
from mrpo.telemetry.exporter import RayExporter
from mrpo.telemetry.queues import PERIOD_S, QueueWatch, queue_readings
from mrpo.telemetry.stages import Stages, timeline_mark
from mrpo.tracking import make_trackers
from mrpo.types import EngineDepth, JudgeDepths, LearnStats
from tests.unit.synthetic_run import training_traces

logger = logging.getLogger("bench")

NUM_COMPLETIONS = 64  # of a step of the phantom default
STEP_S = 1.0  # of such a step on two cores, wall time; a step of any larger policy takes longer
SPANS_A_STEP = 6
REPEATS = 200
BOUND = 0.01  # of a step
STATS = LearnStats(
    loss=0.1, kl=0.02, clip_share=0.0, entropy=0.9, grad_norm=1.2, lr=5e-4, num_tokens=3000, num_micro_batches=4,
    seconds=1.0, extra={"ratio_mean": 1.0, "ratio_max": 1.0, "gpu_memory_bytes": 1e9},
)  # fmt: skip


def bench_metrics() -> bool:
    """Log each part; returns whether all together stay within the bound."""
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return measure(Path(folder))
    finally:
        ray.shutdown()


def measure(folder: Path) -> bool:
    """Time every part."""
    traces = [trace for number in range(NUM_COMPLETIONS) for trace in training_traces(number + 1, 100, ["/scan.png"])]
    traces = traces[:NUM_COMPLETIONS]
    numbers = step_numbers(traces)
    exporter = RayExporter(experiment="bench", run="bench", num_steps=REPEATS, step=0)
    stages = Stages(exporter, timeline_mark)
    depths = [EngineDepth(name=f"engine-{number}", state="up", running=8, waiting=8) for number in range(8)]
    watch = QueueWatch(
        lambda: queue_readings(depths, 4, JudgeDepths(waiting=3, in_flight=5)), exporter, refresh=exporter.refresh
    )
    trackers = make_trackers(
        WandbConfig(mode=WandbMode.OFFLINE), TensorBoardConfig(enabled=True), folder=folder, experiment="bench",
        config_tree={},
    )  # fmt: skip

    def spans() -> None:
        for number in range(SPANS_A_STEP):
            with stages.span(f"stage{number}"):
                pass

    parts: dict[str, Callable[[int], object]] = {
        "numbers of a step": lambda step: step_numbers(traces),
        "to Ray": lambda step: exporter.step(step, numbers),
        "events of histograms": lambda step: exporter.observe(step_distributions(traces)),
        "wandb (offline) and TensorBoard": lambda step: trackers.step(step, numbers),
        "spans of stages": lambda step: spans(),
        f"a look at the queues, every {PERIOD_S:g} s": lambda step: watch.sample(),
    }
    total = 0.0
    for name, part in parts.items():
        seconds = statistics.median(timed(part, step) for step in range(1, REPEATS + 1))
        total += seconds
        logger.info("%-34s %6.2f ms, %5.2f %% of a step of %g s", name, 1e3 * seconds, 100 * seconds / STEP_S, STEP_S)
    trackers.finish()
    logger.info("%-34s %6.2f ms, %5.2f %%, bound %g %%", "all", 1e3 * total, 100 * total / STEP_S, 100 * BOUND)
    return total < BOUND * STEP_S


def step_numbers(traces: Sequence[ScoredTrace]) -> dict[str, float]:
    """As the controller computes them."""
    return step_metrics(
        traces, STATS, threshold=0.6, policy_version=0, started_s=time.time(), sync_s=0.1, step_s=STEP_S
    )


def timed(part: Callable[[int], object], step: int) -> float:
    """Seconds of CPU time of one call, over all threads of this process."""
    started = time.process_time()
    part(step)
    return time.process_time() - started
