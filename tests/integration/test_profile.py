"""`make profile` on real parts: what it leaves, and that the run goes on as any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mrpo.profile.frames import read_events
from mrpo.run_reading import RunStatus, list_checkpoints, read_metrics, read_state
from tests.locations import REPOSITORY

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("profile")
    command = [
        *(sys.executable, "-m", "mrpo.profile", "profile.warmup_steps=1", "profile.steps=1", "profile.stacks=false"),
        *(f"runs_dir={folder / 'runs'}", f"cache_dir={folder / 'cache'}", "cluster.min_free_memory_gib=1"),
        *("model.warm_start.num_scans=64", "model.warm_start.true_steps=4", "model.warm_start.faulty_steps=2"),
        *("data.num_train=16", "data.num_test=8", "rollout.prompts_per_step=4", "rollout.group_size=4"),
        *("rollout.max_new_tokens=32", "learner.num_ranks=1"),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (run,) = (folder / "runs" / "profile").glob("*/*/")
    return run, done.stderr


def test_a_profiled_run_is_a_short_run(profiled: tuple[Path, str]) -> None:
    run, _ = profiled
    assert read_state(run).status == RunStatus.FINISHED
    assert [row["step"] for row in read_metrics(run).rows] == [1, 2]
    assert not (run / "eval").exists() or not list((run / "eval").iterdir())
    assert list_checkpoints(run) == []  # nobody goes on with it, and a large model's takes minutes and a disk


def test_learner_and_engine_leave_traces_of_their_stages(profiled: tuple[Path, str]) -> None:
    run, _ = profiled
    traces = {path.name: path for path in (run / "profile" / "traces").iterdir()}
    stages = {name.rsplit(".", 3)[0] for name in traces}
    assert {"learner-0.learn", "learner-0.sync", "learner-0.score", "engine-0.rollout"} <= stages
    for name in ("learner-0.learn.1.json.gz", "engine-0.rollout.1.json.gz"):
        names = {event.get("name") for event in read_events(traces[name])}
        assert {"aten::linear", "aten::mm"} & names, name
    backward = {str(event.get("name")) for event in read_events(traces["learner-0.learn.1.json.gz"])}
    assert any("Backward" in name for name in backward)


def test_summary_and_flame_graphs_say_where_the_time_went(profiled: tuple[Path, str]) -> None:
    run, shown = profiled
    summary = (run / "profile" / "summary.txt").read_text()
    assert summary.splitlines()[0].startswith("1 steps recorded")
    assert "learner-0 learn: 1 calls" in summary
    assert "engine-0 rollout: 1 calls" in summary
    assert "learner-0 sync: 1 calls" in summary  # not that of the step before
    assert "learner-0 score: 1 calls" in summary
    assert "aten::" in summary
    assert "summary.txt" in shown
    flames = run / "profile" / "flames"
    drawn = ElementTree.parse(flames / "learner-0.learn.svg").getroot()
    assert len(drawn) > 10
    rows = (flames / "learner-0.learn.collapsed.txt").read_text().splitlines()
    assert all(row.startswith("learner-0 learn;") and int(row.rsplit(" ", 1)[1]) > 0 for row in rows)
    stages = {event["name"] for event in json.loads((run / "profile" / "stages.json").read_text())["traceEvents"]}
    assert {"rollout", "learn", "sync"} <= stages
