"""A training whose judge is a model of its own, served by vLLM beside the policy's engine, with canaries."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from mrpo.rows import read_rows
from mrpo.run_reading import RunStatus, read_metrics, read_state
from tests.integration.judge_toys import toy_judge
from tests.integration.test_train import SMALL, command
from tests.locations import REPOSITORY

TIMEOUT_S = 1500.0


@pytest.mark.slow  # an engine, a learner and a judge's server on the same cores
@pytest.mark.timeout(TIMEOUT_S + 60)
def test_a_run_with_a_judge_of_its_own_has_a_ruling_on_every_completion(tmp_path: Path) -> None:
    model = toy_judge(tmp_path / "toy")
    overrides = [
        "judge=vllm",
        f"judge.vllm.model={model}",
        "judge.vllm.max_model_len=4096",
        "judge.vllm.start_timeout_s=1200",
        "judge.max_completion_tokens=1024",
        "judge.deadline_s=300",
        "judge.canary_share=1.0",
        "model.warm_start.true_steps=30",  # so that most completions have steps, and canaries go with them
        "judge.canary_alarm_share=0.05",
        "data.num_test=4",
        "num_steps=1",
    ]
    done = subprocess.run(
        command(tmp_path / "cache", tmp_path / "runs", *SMALL, *overrides),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").glob("*/*/")
    assert read_state(run).status == RunStatus.FINISHED
    (file,) = (run / "rollouts").glob("*.parquet")
    judged = [row for row in read_rows(file) if row.steps]
    assert judged
    assert all(row.judge_failure is None and len(row.alignment or []) == len(row.steps) for row in judged)
    assert {row.judge_model.split("@")[0] for row in judged if row.judge_model} == {"toy"}
    (step,) = read_metrics(run).rows
    assert (step["judge/canary_steps"] or 0) > 0
    assert 0 < (step["judge/canary_error_rate"] or 0) <= 1  # its marks are chance
    assert "judge canaries:" in (run / "events.log").read_text()
    assert "canary steps ruled wrong" in (run / "report.html").read_text()
    assert (run / "logs" / "judge-server-0.log").stat().st_size > 0
    left = [process for process in psutil.process_iter(["cmdline"]) if model in " ".join(process.info["cmdline"] or [])]
    assert not left
