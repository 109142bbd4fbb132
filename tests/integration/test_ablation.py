"""A study from command to plot, on all the real parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mrpo.ablation.results import ResultRow
from mrpo.run_reading import RunStatus, read_config, read_metrics, read_state
from tests.locations import REPOSITORY

TIMEOUT_S = 1800.0


def run_smoke(folder: Path) -> str:
    """The command users run; returns what it showed."""
    arguments = ["study=smoke", f"runs_dir={folder / 'runs'}", f"cache_dir={folder / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mrpo.ablation", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow  # three trainings with their engines
def test_the_smoke_study_runs_to_its_table_and_once_only(tmp_path: Path) -> None:
    shown = run_smoke(tmp_path)
    assert shown.count(": finished after ") == 3
    folder = tmp_path / "runs" / "ablation" / "smoke"
    rows = [ResultRow(**row) for row in pq.read_table(folder / "results.parquet").to_pylist()]
    assert [(row.axis, row.settings, row.is_default) for row in rows] == [
        ("base", "algorithm.base=1", False),
        ("base", "algorithm.base=2.718281828459045", True),
        ("judge_noise", "judge.noise=0", True),
        ("judge_noise", "judge.noise=0.5", False),
    ]
    assert rows[1].run_folder == rows[2].run_folder
    assert len({row.run_folder for row in rows}) == 3
    for row in rows:
        assert row.status == "finished"
        assert (row.num_steps, row.num_questions) == (2, 16)
        assert row.accuracy_before is not None and row.accuracy_after is not None and row.reward_end is not None
        assert row.run_folder is not None
        run = folder / row.run_folder
        assert read_state(run).status == RunStatus.FINISHED
        noise = read_config(run)["judge"]["noise"]
        shares = [step.get("judge/flipped_share") for step in read_metrics(run).rows]
        assert len(shares) == 2
        assert all(share is None for share in shares) if noise == 0 else any(shares)
    assert len({row.early_before for row in rows}) == 1  # one warm start, and no noise in an evaluation
    assert (folder / "results.svg").read_text().startswith("<?xml")
    assert "| judge_noise | judge.noise=0.5 | 1 of 1 |" in (folder / "results.md").read_text()

    log = next(folder.glob("*/train.log")).read_text()
    assert "report:" in log
    shown = run_smoke(tmp_path)
    assert "3 of them finished already" in shown
    assert ": finished after" not in shown
