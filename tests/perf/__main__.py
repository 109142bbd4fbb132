"""`make bench`: ratios taken in one run. ARGS names the parts to run; all by default.

- `hot_path`: completions a second through segmentation, spans, advantages and shaping, and with the library rewards.
- `segmentation`: our sentence rules and pysbd on the hand-cut corpus.
- `memory`: peak memory of the chunked log-probs against the naive form.
- `packing`: tokens a second with samples packed into one row, and padded to the longest.
- `conversion`: time and memory of `make convert` at the sizes of InternVL3-8B (16 GB are written).
- `judge`: 5,000 judge calls under latency, faults and limits: throughput, CPU a call, and what the server saw.
- `metrics`: what a step's numbers cost on their way to every place that shows them; fails above 1 % of a step.
- `checkpoint`: seconds for which a checkpoint holds up training and memory it takes, asynchronous or not; fails above
  0.5 s on the toy.
- `steps`: wall time of a 64-completion step of the phantom default at zero judge latency, against the same work in
  plain transformers (`generate`, then one forward and backward pass and AdamW), which is what a trainer without a
  rollout engine does; and with 2 s of judge latency, how much of the judging generation hid.

Leave both cores to it. Medians; the machine's noise is in the quartiles beside them.
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mrpo.rows import read_rows
from mrpo.run_reading import read_metrics
from tests.perf import checkpoint, conversion, hot_path, judge_load, logprob_memory, metrics_cost, packing, segmentation
from tests.perf.peer import time_peer_steps

logger = logging.getLogger("bench")
NUM_STEPS = 24
SKIPPED = 6  # first steps: caches fill, threads start
JUDGE_LATENCY_S = 2.0


def main(names: Sequence[str]) -> int:
    """Run the named benchmarks and log a line each."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logger.setLevel(logging.INFO)
    unknown = set(names) - set(BENCHES)
    if unknown:
        logger.error("no such benchmark: %s; known: %s", ", ".join(sorted(unknown)), ", ".join(BENCHES))
        return 2
    within = [BENCHES[name]() is not False for name in names or BENCHES]  # False: a bound is exceeded
    return 0 if all(within) else 1


def bench_steps() -> None:
    """The steady state of training."""
    with tempfile.TemporaryDirectory() as runs:
        fast = run_steps(Path(runs) / "fast")
        checkpoint = sorted((Path(runs) / "fast").glob("*/*/checkpoints/*/hf"))[-1]
        peer = time_peer_steps(checkpoint, num_steps=NUM_STEPS - SKIPPED)
        slow = run_steps(Path(runs) / "slow", f"judge.oracle.latency_s={JUDGE_LATENCY_S}")
        delays = judge_delays(Path(runs) / "slow")
    report("step, no judge latency", fast, "time/step_s")
    for part in ("rollout", "judge", "learn", "sync"):
        report(f"  {part}", fast, f"time/{part}_s")
    report("  tokens/s of generation", fast, "rollout/tokens_per_s")
    logger.info("%-40s %s", "same work in plain transformers, s", spread(peer))
    ours = statistics.median(row["time/step_s"] for row in fast)
    logger.info("%-40s %.2f", "ratio ours / plain transformers", ours / statistics.median(peer))
    report(f"step, {JUDGE_LATENCY_S:g} s judge latency", slow, "time/step_s")
    report("  generation", slow, "time/rollout_s")
    report("  judging after generation", slow, "time/judge_s")
    report("  share of judging that generation hid", slow, "judge/overlap_share")
    logger.info("%-40s %s", "  from a completion's end to its judge call, s", spread(delays))
    theirs = statistics.median(row["time/step_s"] for row in slow)
    logger.info("%-40s %.2f", "added by the latency, s", theirs - ours)


def run_steps(runs: Path, *overrides: str) -> list[dict[str, float]]:
    """Train the default for a few steps without evaluation; the metrics of those after the first."""
    command = [sys.executable, "-m", "mrpo.train", f"runs_dir={runs}", f"num_steps={NUM_STEPS}"]
    command += ["eval.before=false", "eval.after=false", "checkpoint.every_steps=0", *overrides]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    (folder,) = runs.glob("*/*/")
    rows = read_metrics(folder).rows[SKIPPED:]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def judge_delays(runs: Path) -> list[float]:
    """Seconds between the end of each completion and the call to the judge, over the counted steps."""
    files = sorted(runs.glob("*/*/rollouts/*.parquet"))[SKIPPED:]
    rows = [row for file in files for row in read_rows(file)]
    return [row.judge_started_s - row.rollout_ended_s for row in rows if row.judge_started_s is not None]


def report(label: str, rows: Sequence[dict[str, float]], name: str) -> None:
    """Log the median and quartiles of one metric."""
    logger.info("%-40s %s", label, spread([row[name] for row in rows]))


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return json.dumps({"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]})


BENCHES: dict[str, Callable[[], bool | None]] = {
    "hot_path": hot_path.log_rates,
    "segmentation": segmentation.log_table,
    "memory": logprob_memory.report,
    "packing": packing.report,
    "conversion": conversion.report,
    "judge": judge_load.log_load,
    "checkpoint": checkpoint.report,
    "metrics": metrics_cost.bench_metrics,
    "steps": bench_steps,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
