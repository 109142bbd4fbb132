"""A whole training on all the real parts, whose judge is dead for two minutes in the middle."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mrpo.rows import read_rows
from mrpo.run_reading import RunStatus, read_metrics, read_state
from tests.integration.judge_endpoint import Endpoint
from tests.locations import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
OUTAGE_S = 120.0
NUM_STEPS = 4


def wait_for_rows(runs: Path, number: int, process: subprocess.Popen[str]) -> None:
    """Until so many steps are done."""
    while process.poll() is None:
        found = list(runs.glob("*/*/metrics.jsonl"))
        if found and len(found[0].read_text().splitlines()) >= number:
            return
        time.sleep(0.2)
    raise AssertionError(f"the run ended before step {number}: {process.communicate()[1][-3000:]}")


def test_training_waits_out_two_minutes_without_a_judge_and_says_so(tmp_path: Path) -> None:
    endpoint = Endpoint()
    endpoint.start()
    endpoint.wait()
    command = [
        *(sys.executable, "-m", "mrpo.train", "judge=openai_compatible", f"judge.url={endpoint.url}"),
        *("judge.model=oracle", "judge.deadline_s=20", "judge.cache.enabled=false"),
        *(f"num_steps={NUM_STEPS}", "eval.before=false", "eval.after=false"),
        *(f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"),
        *("model.warm_start.num_scans=64", "model.warm_start.true_steps=80", "model.warm_start.faulty_steps=2"),
        *("data.num_train=16", "data.num_test=8", "rollout.prompts_per_step=4", "rollout.group_size=4"),
        "cluster.min_free_memory_gib=1",
    ]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_rows(tmp_path / "runs", 1, process)
        endpoint.kill()
        time.sleep(OUTAGE_S)
        endpoint.start()
        _, shown = process.communicate(timeout=600)
    finally:
        process.kill()
        endpoint.kill()
    assert process.returncode == 0, shown[-3000:]
    (run,) = (tmp_path / "runs").glob("*/*/")
    assert read_state(run).status == RunStatus.FINISHED
    rows = read_metrics(run).rows
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert sum(row.get("judge/outage_s", 0.0) for row in rows) >= OUTAGE_S - 20.0
    assert not [name for row in rows for name in row if name.startswith("judge/failures/")]
    num_judged = 0
    for table in sorted((run / "rollouts").glob("*.parquet")):
        for row in read_rows(table):
            if row.steps:
                num_judged += 1
                assert row.judge_failure is None
                assert row.process_reward is not None
    assert num_judged >= NUM_STEPS
    events = (run / "events.log").read_text()
    assert events.index("judge down") < events.index("judge up again")
    assert "time without a judge" in (run / "report.html").read_text()
