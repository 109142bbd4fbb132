"""The command users run, in a process of its own, on all the real parts, small."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from mrpo.config import PriceConfig
from mrpo.judge_prices import cost_of
from mrpo.judge_spending import SPENDING_FILE, read_spending, sum_of
from mrpo.rows import read_rows
from mrpo.run_reading import RunStatus, list_checkpoints, read_metrics, read_state
from mrpo.telemetry.table import Stage
from mrpo.telemetry.timeline import TIMELINE
from tests.integration.metrics_agreement import (
    assert_every_panel_asks_for_what_was_exported,
    assert_prometheus_agrees,
    assert_tensorboard_agrees,
    assert_the_console_agrees,
    assert_the_table_is_whole,
    assert_wandb_agrees,
)
from tests.integration.metrics_readers import Endpoint, free_port
from tests.locations import REPOSITORY, vqa_rad_folder

NUM_STEPS = 4
TIMEOUT_S = 420.0
STOP_LIMIT_S = 15.0
PRICE = PriceConfig(prompt=1.0, completion=4.0)
SMALL = [
    "data.num_train=16",
    "data.num_test=16",
    "model.warm_start.num_scans=64",
    "model.warm_start.true_steps=16",
    "model.warm_start.faulty_steps=2",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_new_tokens=64",
    "checkpoint.every_steps=1",
    "checkpoint.keep_last=2",
    "cluster.min_free_memory_gib=2",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for the module, so that runs of one family share data and warm start."""
    folder = tmp_path_factory.mktemp("cache")
    yield folder
    shutil.rmtree(folder)


def command(cache: Path, runs: Path, *overrides: str) -> list[str]:
    """The training command with its places redirected."""
    return [sys.executable, "-m", "mrpo.train", f"cache_dir={cache}", f"runs_dir={runs}", *overrides]


def train(cache: Path, runs: Path, *overrides: str, code: int = 0) -> tuple[Path, str]:
    """Run to the end; returns the run folder and what was shown."""
    done = subprocess.run(
        command(cache, runs, *overrides), cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == code, done.stderr
    (folder,) = runs.glob("*/*/")
    return folder, done.stderr


def losses(folder: Path) -> list[tuple[float | None, ...]]:
    """What must repeat to the bit: losses, rewards and lengths of every step."""
    names = ("step", "policy/loss", "policy/grad_norm", "reward/mean", "completion/tokens", "accuracy")
    return [tuple(row[name] for name in names) for row in read_metrics(folder).rows]


def assert_whole_run(folder: Path, num_steps: int) -> None:
    """What every finished run leaves."""
    assert read_state(folder).status == RunStatus.FINISHED
    rows = read_metrics(folder).rows
    assert [row["step"] for row in rows] == list(range(1, num_steps + 1))
    assert len(list((folder / "rollouts").glob("*.parquet"))) == num_steps
    assert len(read_rows(folder / "eval" / "before.parquet")) == len(read_rows(folder / "eval" / "after.parquet"))
    assert "<svg" in (folder / "report.html").read_text()
    hf = list_checkpoints(folder)[-1].path / "hf"
    assert (hf / "config.json").is_file()
    assert list(hf.glob("*.safetensors"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A finished run, and all that was to be seen of it."""

    folder: Path
    shown: str
    endpoint: Endpoint


@pytest.fixture(scope="module")
def watched_run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """An uninterrupted run of the default family, with everything that shows its numbers."""
    runs = tmp_path_factory.mktemp("whole")
    with Endpoint(free_port()) as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "250")  # of Ray's processes; 10,000 by default
        overrides = [
            "wandb.mode=offline",
            "tensorboard.enabled=true",
            f"cluster.metrics_port={endpoint.port}",
            f"judge.prices={{oracle:{{prompt:{PRICE.prompt},completion:{PRICE.completion}}}}}",
        ]
        folder, shown = train(cache, runs, *SMALL, f"num_steps={NUM_STEPS}", *overrides)
    return Watched(folder=folder, shown=shown, endpoint=endpoint)


@pytest.fixture(scope="module")
def whole_run(watched_run: Watched) -> Path:
    """Its folder."""
    assert "evaluation before" in watched_run.shown
    assert "report:" in watched_run.shown
    return watched_run.folder


def test_all_that_shows_a_runs_numbers_shows_the_same_digits(watched_run: Watched) -> None:
    assert_the_table_is_whole(watched_run.folder)
    assert_wandb_agrees(watched_run.folder)
    assert_tensorboard_agrees(watched_run.folder)
    assert_the_console_agrees(watched_run.folder, watched_run.shown)
    assert_prometheus_agrees(watched_run.folder, watched_run.endpoint)


def test_every_panel_of_the_dashboard_asks_for_what_a_short_run_exports(watched_run: Watched) -> None:
    stages = set(Stage) - {Stage.SUPERVISED}  # that row is of `make sft`
    assert_every_panel_asks_for_what_was_exported(watched_run.endpoint, stages)


def test_the_timeline_holds_every_stage_of_every_step(watched_run: Watched) -> None:
    spans = json.loads((watched_run.folder / TIMELINE).read_text())
    spans = [span for span in spans if span.get("cat") == span["name"]]  # the others are tasks of actors
    stages = Counter(span["name"] for span in spans)
    assert stages["rollout"] == stages["score"] == stages["learn"] == NUM_STEPS
    assert stages["sync"] == NUM_STEPS + 1  # the first comes before the first step
    assert stages["checkpoint"] >= NUM_STEPS
    assert stages["evaluate"] == 2
    assert stages["judge"] == NUM_STEPS + 2
    ends = [span["ts"] + span["dur"] for span in spans if span["name"] == "rollout"]
    starts = [span["ts"] for span in spans if span["name"] == "learn"]
    assert all(end <= start for end, start in zip(sorted(ends), sorted(starts), strict=True))


def test_qwen2_5_vl_runs_the_whole_loop(whole_run: Path) -> None:
    assert_whole_run(whole_run, NUM_STEPS)
    assert list((whole_run / "wandb").glob("offline-run-*/*.wandb"))
    rows = [row for number in range(1, NUM_STEPS + 1) for row in read_rows(step_file(whole_run, number))]
    assert len(rows) == NUM_STEPS * 16
    assert {row.policy_version for row in rows} == set(range(NUM_STEPS))  # strictly on-policy: step n by version n - 1
    judged = [row for row in rows if row.steps]
    assert judged
    assert all(row.judge_attempts == 1 and row.judge_failure is None for row in judged)
    assert all(len(row.token_advantages or []) == row.num_completion_tokens for row in rows)


def calls_of(path: Path) -> int:
    """Requests to the judge that a file of completions tells of."""
    return sum(row.judge_attempts or 0 for row in read_rows(path))


def step_file(folder: Path, step: int) -> Path:
    """The rollouts of a step."""
    return folder / "rollouts" / f"step_{step:05d}.parquet"


@pytest.mark.slow  # test_published_rl trains them in every run of the tests
@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_other_families_run_the_whole_loop(family: str, cache: Path, tmp_path: Path) -> None:
    folder, _ = train(cache, tmp_path, *SMALL, f"model=toy_{family}", "num_steps=2", "data.num_test=8")
    assert_whole_run(folder, 2)


def test_ctrl_c_leaves_a_checkpoint_from_which_the_same_run_goes_on(
    whole_run: Path, cache: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(cache, tmp_path, *SMALL, f"num_steps={NUM_STEPS}"),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_steps(process, tmp_path, 2)
    shown = interrupt(process)
    assert "resume=" in shown

    (folder,) = tmp_path.glob("*/*/")
    assert read_state(folder).status == RunStatus.INTERRUPTED
    assert list_checkpoints(folder)[-1].step == read_state(folder).step >= 2
    assert (folder / "report.html").is_file()

    resumed, shown = train(cache, tmp_path, f"resume={folder}")
    assert "resuming at step" in shown
    assert resumed == folder
    assert_whole_run(folder, NUM_STEPS)
    assert losses(folder) == losses(whole_run)


def test_a_spent_budget_for_the_judge_ends_a_run_that_goes_on_with_a_larger_one(
    whole_run: Path, cache: Path, tmp_path: Path
) -> None:
    """One request less than the last step with calls needs: that step is given up, and made again in full."""
    needed = {path.stem: calls_of(path) for path in whole_run.glob("*/*.parquet")}
    step = max(number for number in range(1, NUM_STEPS + 1) if needed[f"step_{number:05d}"])
    assert step > 1
    limit = needed["before"] + sum(needed[f"step_{number:05d}"] for number in range(1, step + 1)) - 1
    prices = "judge.prices={oracle:{prompt:1,completion:4}}"
    overrides = [*SMALL, f"num_steps={NUM_STEPS}", f"judge.max_requests={limit}", prices]
    folder, shown = train(cache, tmp_path, *overrides, code=2)
    last = shown.strip().splitlines()[-1]
    assert f"judge.max_requests={limit}: {limit} spent" in last
    assert f'make train ARGS="resume={folder} judge.max_requests=<more>"' in last
    assert read_state(folder).status == RunStatus.INTERRUPTED
    assert [row["step"] for row in read_metrics(folder).rows] == list(range(1, step)), (
        "nothing of the step is on record"
    )
    assert list_checkpoints(folder)[-1].step == step - 1
    assert "WARNING judge budget: " in (folder / "events.log").read_text()
    assert sum_of(read_spending(folder / SPENDING_FILE)).requests == limit

    train(cache, tmp_path, f"resume={folder}", "judge.max_requests=1000")
    assert_whole_run(folder, NUM_STEPS)
    assert losses(folder) == losses(whole_run)
    spent = read_spending(folder / SPENDING_FILE)["oracle"]
    calls = {path.stem: calls_of(path) for path in folder.glob("*/*.parquet")}
    assert calls == needed
    given_up = needed[f"step_{step:05d}"] - 1
    assert spent.requests == sum(calls.values()) + given_up, "those of the step that was given up are paid for too"
    rows = read_metrics(folder).rows
    assert rows[-1]["judge/budget_left_share"] == pytest.approx(1 - (spent.requests - calls["after"]) / 1000)
    costs = [row["judge/cost"] for row in rows]
    assert None not in costs
    assert 0 < sum(cost for cost in costs if cost is not None) < cost_of(spent, PRICE)
    assert f"{spent.requests:,} requests" in (folder / "report.html").read_text()


def test_ctrl_c_during_the_warm_start_ends_as_soon(cache: Path, tmp_path: Path) -> None:
    """The learner is in the middle of one long call then."""
    process = subprocess.Popen(
        command(cache, tmp_path, *SMALL, "seed=9", "model.warm_start.true_steps=5000"),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("warm start"):
            break
    time.sleep(3.0)
    interrupt(process)
    (folder,) = tmp_path.glob("*/*/")
    assert read_state(folder).status == RunStatus.INTERRUPTED


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C: the run must end in time and leave nothing running; returns what it showed."""
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everything in the foreground group gets it
    _, shown = process.communicate(timeout=STOP_LIMIT_S)
    assert time.monotonic() - started < STOP_LIMIT_S
    assert process.returncode == 130, shown
    time.sleep(1.0)
    assert [pid for pid in family if is_running(pid)] == []
    # Of these processes: another test's run may be sending weights at this moment.
    assert [
        path.name for path in Path("/dev/shm").glob("mrpo-weights-*") if int(path.name.split("-")[2]) in family
    ] == []
    return shown


def wait_for_steps(process: subprocess.Popen[str], runs: Path, num_steps: int) -> None:
    """Block until so many steps are on record."""
    ends_at = time.monotonic() + TIMEOUT_S
    while time.monotonic() < ends_at:
        assert process.poll() is None, process.communicate()[1]
        files = list(runs.glob("*/*/metrics.jsonl"))
        if files and len(files[0].read_text().splitlines()) >= num_steps:
            return
        time.sleep(0.2)
    raise AssertionError(f"{num_steps} steps took longer than {TIMEOUT_S} s")


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_real_radiographs_with_answer_only_rewards(cache: Path, tmp_path: Path) -> None:
    root = vqa_rad_folder()
    if root is None:
        pytest.skip("the VQA-RAD data set is not here; set MRPO_VQA_RAD=<folder with train.json, test.json, images/>")
    overrides = [f"data.root={root}", "experiment=vqa_rad_smoke", "data.num_train=16", "data.num_test=8"]
    small = [item for item in SMALL if not item.startswith("data.")]
    folder, shown = train(cache, tmp_path, *overrides, *small)
    assert "answer-only" in shown
    assert_whole_run(folder, 3)
    rows = read_rows(step_file(folder, 1))
    assert all(row.process_reward is None and row.judge_attempts is None for row in rows)
    assert {Path(row.image).suffix for row in rows} == {".jpg"}
    assert "answer-only" in (folder / "report.html").read_text()
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["judge/asked"] == 0
