"""5,000 completions through four judge actors and a server of 300 ms latency, 20 % of its replies faulty."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from PIL import Image

from mrpo.config import BreakerConfig, JudgeConfig

logger = logging.getLogger("bench")
NUMBER = 5000
TOKENS = 740  # of a request, as the server counts them
CONCURRENCY = 64
PER_MINUTE = 4200  # requests of the second run, which takes longer than a minute
TOKENS_PER_MINUTE = 4000 * TOKENS  # which are fewer
MIN_UTILISATION = 0.9
MAX_CPU_MS = 3.0  # a call, in the judge actors and the process they are called from


def log_load() -> bool:
    """Log both runs; False: a limit was exceeded or a bound not met."""
    import ray

    sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))  # its modules name each other without a package
    from tests.integration.judge_load_run import Load, run_load
    from tests.integration.judge_load_server import Faults

    def report(label: str, load: Load) -> None:
        calls = len(load.judgements)
        logger.info("%-40s %s", label, dict(load.tally.failed) | {"ruled": load.tally.ruled})
        logger.info("%-40s %d, at most %d at once", "  requests", len(load.seen.arrived_s), load.seen.max_in_flight)
        logger.info("%-40s %d", "  requests in the busiest minute", load.seen.most_within(60.0))
        logger.info("%-40s %s", "  load average of the machine", f"{os.getloadavg()[0]:.1f}")
        logger.info("%-40s %.1f s, %.1f calls/s", "  wall time", load.wall_s, calls / load.wall_s)
        logger.info("%-40s %.3f", "  share of the slots' time in use", load.utilisation)
        logger.info("%-40s %.2f", "  CPU of judge actors, ms a call", 1000 * load.worker_cpu_s / calls)
        logger.info("%-40s %.2f", "  CPU of their caller, ms a call", 1000 * load.driver_cpu_s / calls)

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    # One request in ten fails as a dead endpoint's would: five in a row come by chance once in twenty runs.
    breaker = BreakerConfig(num_failures=10)
    config = JudgeConfig(num_actors=4, concurrency=CONCURRENCY, deadline_s=2.0, breaker=breaker)
    limited = replace(config, requests_per_minute=PER_MINUTE, tokens_per_minute=TOKENS_PER_MINUTE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "scan.png"
            Image.new("L", (84, 84), 90).save(image)
            free = run_load(str(image), NUMBER, Faults(), config)
            report("no rate limit", free)
            rated = run_load(str(image), NUMBER, Faults(seed=1), limited)
            report(f"{PER_MINUTE:,} requests, {TOKENS_PER_MINUTE:,} tokens a minute", rated)
    finally:
        ray.shutdown()
    cpu_ms = 1000 * (free.worker_cpu_s + free.driver_cpu_s) / NUMBER
    return (
        all(load.tally.open == 0 and load.tally.ruled + load.tally.failed.total() == NUMBER for load in (free, rated))
        # A request is counted before it leaves, and on a busy machine the deadline may come first.
        and all(0 <= load.requests_spent - len(load.seen.arrived_s) <= 0.005 * NUMBER for load in (free, rated))
        and max(load.seen.max_in_flight for load in (free, rated)) <= CONCURRENCY
        and rated.seen.most_within(60.0) * TOKENS <= TOKENS_PER_MINUTE
        and free.utilisation >= MIN_UTILISATION
        and cpu_ms < MAX_CPU_MS
    )
