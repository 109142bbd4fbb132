"""Whole trainings on real parts whose judge is gone for a minute in the middle: what they come to is the same."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mrpo.faults import FaultKind, read_faults
from mrpo.run_reading import RunStatus, read_metrics, read_state
from tests.integration.judge_endpoint import Endpoint
from tests.integration.judge_outage_run import completions_of, num_steps_of, running, untouched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
OUTAGE_S = 60.0
NUM_STEPS = 4


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    found = Endpoint()
    found.start()
    found.wait()
    yield found
    found.kill()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def command(endpoint: Endpoint, cache: Path, runs: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "mrpo.train", "judge=openai_compatible", f"judge.url={endpoint.url}"),
        *("judge.model=oracle", "judge.deadline_s=10", "judge.cache.enabled=false"),
        *(f"num_steps={NUM_STEPS}", "eval.before=false", "eval.after=false"),
        *(f"runs_dir={runs}", f"cache_dir={cache}"),
        *("model.warm_start.num_scans=64", "model.warm_start.true_steps=80", "model.warm_start.faulty_steps=2"),
        *("data.num_train=16", "data.num_test=8", "rollout.prompts_per_step=4", "rollout.group_size=4"),
        "cluster.min_free_memory_gib=1",
    ]


@pytest.fixture(scope="module")
def undisturbed(endpoint: Endpoint, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    with running(command(endpoint, cache, runs)) as run:
        assert run.finish() == 0, run.shown[-3000:]
    (folder,) = runs.glob("*/*/")
    return folder


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_minute_without_a_judge_is_waited_out_visibly_and_changes_nothing(
    how: str, endpoint: Endpoint, cache: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Killed: its port is closed; what is shown goes to a file. Stopped: it accepts and is silent; to a terminal."""
    terminal = how == "stopped"
    with running(command(endpoint, cache, tmp_path), terminal=terminal) as run:
        run.wait_for(lambda: num_steps_of(tmp_path) >= 1, "the first step")
        endpoint.hang() if how == "stopped" else endpoint.kill()
        time.sleep(OUTAGE_S)
        assert num_steps_of(tmp_path) < NUM_STEPS
        if how == "stopped":
            endpoint.resume()
        else:
            endpoint.start()
        assert run.finish() == 0, run.shown[-3000:]
    (folder,) = tmp_path.glob("*/*/")
    assert read_state(folder).status == RunStatus.FINISHED
    assert untouched(folder) == untouched(undisturbed)
    assert completions_of(folder) == completions_of(undisturbed)
    rows = read_metrics(folder).rows
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    noticed_s = 20.0 if how == "stopped" else 2.0  # a silent one is known for it after a deadline and a question
    assert sum(row.get("judge/outage_s", 0.0) for row in rows) >= OUTAGE_S - noticed_s
    assert not [name for row in rows for name in row if name.startswith("judge/failures/")]
    assert {int(seconds) for seconds in re.findall(r"judge: out for (\d+) s \(", run.shown)}
    assert "calls wait, asking again" in run.shown
    events = (folder / "events.log").read_text()
    assert events.index("judge down") < events.index("judge up again")
    (fault,) = [fault for fault in read_faults(folder) if fault.kind == FaultKind.JUDGE_OUTAGE]
    assert fault.recovery_s is not None and fault.recovery_s >= OUTAGE_S - noticed_s
    assert "time without a judge" in (folder / "report.html").read_text()
