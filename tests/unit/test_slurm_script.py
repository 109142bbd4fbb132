"""docker/slurm.sh with stand-ins for SLURM, Ray and the training: what it starts, hands on, and does about signals.

No scheduler is at hand; each stand-in writes down how it was called.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from mrpo.compose import compose_config
from tests.locations import REPOSITORY

SCRIPT = REPOSITORY / "docker" / "slurm.sh"
WAIT_S = 60
STAND_INS = {
    "scontrol": 'if [[ "$1" == show ]]; then printf "%s\\n" node-a node-b; fi',
    # The last words of srun are the command, as here.
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "hostname": "echo 10.0.0.1 fe80::1",
    "ray": """if [[ -n "${DEAD:-}" ]]; then exit 1; fi
if [[ "$1" == start ]]; then trap "note ray ended; exit 0" TERM; sleep 100 & wait; fi""",
    "python": """if [[ "$1" == - ]]; then cat >/dev/null; sleep 1; exit "${JOINED:-0}"; fi
trap 'note saved; exit "${STOPPED:-143}"' TERM
if [[ -n "${DEAF:-}" ]]; then trap "" TERM; fi
touch "$FOLDER/training"
if [[ -n "${TRAIN_CODE:-}" ]]; then exit "$TRAIN_CODE"; fi
sleep 100 & wait""",
}


class Job:
    """The script, running."""

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str]) -> None:
        self.folder = folder
        stand_ins = folder / "bin"
        stand_ins.mkdir()
        for name, body in STAND_INS.items():
            path = stand_ins / name
            note = f'note() {{ echo "$*" >> {folder}/calls; }}; note {name} "$@"'
            path.write_text(f"#!/usr/bin/env bash\nFOLDER={folder}\n{note}\n{body}\n")
            path.chmod(0o755)
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env={
                **os.environ,
                "PATH": f"{stand_ins}:{os.environ['PATH']}",
                "MRPO_BIN": str(stand_ins),
                "SLURM_SUBMIT_DIR": str(folder),
                "SLURM_JOB_ID": "4711",
                "SLURM_JOB_NODELIST": "node-[a-b]",
                **environment,
            },
            stdout=(folder / "log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def until_training(self) -> None:
        self.until(lambda: (self.folder / "training").exists())

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not done():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """Exit code and output."""
        try:
            code = self.process.wait(timeout=WAIT_S)
        finally:
            self.kill()
        return code, (self.folder / "log").read_text()

    def kill(self) -> None:
        """With what the stand-ins wait with."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=WAIT_S)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


def test_a_cluster_of_all_nodes_trains_and_ends_with_the_runs_code(tmp_path: Path) -> None:
    job = Job(tmp_path, "experiment=internvl3", "data.root='/a b'", environment={"TRAIN_CODE": "2"})
    code, said = job.end()
    assert code == 2, said
    calls = job.calls()
    starts = [call for call in calls if call.startswith("ray start")]
    assert len(starts) == 2
    assert any(
        "--head" in start and "--dashboard-port=34711" in start and "--node-ip-address=10.0.0.1 --port=24711" in start
        for start in starts
    )
    assert any("--address=10.0.0.1:24711" in start for start in starts)
    (training,) = [call for call in calls if call.startswith("python -m mrpo.train")]
    assert training == (
        "python -m mrpo.train run_name=slurm-4711 checkpoint.grace_s=280 experiment=internvl3 data.root='/a b' "
        "cluster.address=10.0.0.1:24711 resume=auto"
    )
    run = compose_config([*training.split()[3:5], "run_name=mine", "resume=auto"])  # a name that is given wins
    assert (run.run_name, run.checkpoint.grace_s) == ("mine", 280.0)
    assert calls.count("ray ended") == 2  # no node is left with a Ray
    assert not [call for call in calls if call.startswith("scontrol requeue")]


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_run_that_must_leave_saves_first_and_is_queued_again_unless_cancelled(
    tmp_path: Path, number: signal.Signals, requeued: bool
) -> None:
    job = Job(tmp_path, "experiment=phantom", environment={})
    job.until_training()
    job.process.send_signal(number)
    code, said = job.end()
    assert code == 143, said  # the run's own, not that of a wait that was cut short
    calls = job.calls()
    assert "saved" in calls
    assert calls.index("saved") < calls.index("ray ended")  # the cluster outlives the saving
    assert calls.count("scontrol requeue 4711") == requeued


def test_a_job_is_queued_again_before_its_notice_is_over_though_the_run_has_not_ended(tmp_path: Path) -> None:
    job = Job(tmp_path, environment={"DEAF": "yes", "MRPO_NOTICE_S": "3"})
    try:
        job.until_training()
        job.process.send_signal(signal.SIGUSR1)
        job.until(lambda: "scontrol requeue 4711" in job.calls())
        assert "saved" not in job.calls()
        assert any("checkpoint.grace_s=2 " in call for call in job.calls())  # less than the notice that is given
        assert job.process.poll() is None  # the run goes on saving until SLURM ends it
    finally:
        job.kill()


@pytest.mark.parametrize("code", [0, 2])
def test_a_run_that_is_done_or_mistaken_when_the_signal_comes_is_not_queued_again(code: int, tmp_path: Path) -> None:
    job = Job(tmp_path, environment={"STOPPED": str(code)})
    job.until_training()
    job.process.send_signal(signal.SIGUSR1)
    assert job.end()[0] == code
    assert "scontrol requeue 4711" not in job.calls()


def test_a_run_that_fails_is_not_queued_again(tmp_path: Path) -> None:
    job = Job(tmp_path, environment={"TRAIN_CODE": "1"})
    assert job.end()[0] == 1
    assert "scontrol requeue 4711" not in job.calls()


def test_the_notice_that_the_script_counts_on_is_what_it_asks_for() -> None:
    text = SCRIPT.read_text()
    (notice,) = re.findall(r"^#SBATCH --signal=B:USR1@(\d+)$", text, re.MULTILINE)
    assert re.findall(r"MRPO_NOTICE_S:-(\d+)", text) == [notice]


def test_nodes_that_do_not_join_end_the_job(tmp_path: Path) -> None:
    job = Job(tmp_path, environment={"JOINED": "1"})
    code, _ = job.end()
    assert code == 1
    assert not (tmp_path / "training").exists()
    assert job.calls().count("ray ended") == 2


def test_a_head_that_does_not_start_ends_the_job_at_once(tmp_path: Path) -> None:
    job = Job(tmp_path, environment={"DEAD": "yes"})
    code, said = job.end()
    assert code == 1
    assert "Ray's head ended" in said
    assert not (tmp_path / "training").exists()


def test_it_is_not_run_by_hand() -> None:
    surroundings = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    answer = subprocess.run(["bash", str(SCRIPT)], env=surroundings, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert "submit this with sbatch" in answer.stderr
