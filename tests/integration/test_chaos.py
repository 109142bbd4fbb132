"""Training gets over the loss of any of its parts, and nobody can tell from the results that something was lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.chaos_cluster import SHM, left_in_shared_memory, shared_memory
from tests.locations import REPOSITORY

TIMEOUT_S = 900.0
LEAVE_AN_ORPHAN = """
import subprocess, sys, time
from tests.integration.chaos_cluster import adopt_orphans, descendants, left_after, working_processes
adopt_orphans()
child = subprocess.run(["sh", "-c", "sleep 60 >&- & echo $!"], stdout=subprocess.PIPE, text=True)
pid = int(child.stdout)
assert pid in descendants() and pid in working_processes()
[line] = left_after(working_processes, 0.5)
assert "sleep 60" in line, line
import os, signal
os.kill(pid, signal.SIGKILL)
assert left_after(descendants, 5.0) == []
"""


def chaos(out: Path, *options: str) -> list[dict[str, Any]]:
    """Run the harness; returns what came of each seed."""
    command = [sys.executable, "-m", "tests.integration.chaos_run", f"--out={out}", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    outcomes = [json.loads(path.read_text()) for path in sorted(out.glob("seed_*.json"))]
    assert outcomes, done.stderr
    return outcomes


def test_engine_learner_and_judge_actor_are_lost_and_the_results_are_the_same(tmp_path: Path) -> None:
    victims = "engine,learner_rank,judge_actor"
    # Twice the limits: other tests run beside this one.
    [outcome] = chaos(tmp_path, "--steps=10", f"--victims={victims}", "--gap=2,3", "--no-spare", "--patience=2")
    assert outcome["problems"] == []
    assert sorted(killed["kill"]["victim"] for killed in outcome["kills"]) == sorted(victims.split(","))


@pytest.mark.slow
def test_thirty_steps_in_which_anything_may_be_lost(tmp_path: Path) -> None:
    outcomes = chaos(tmp_path, "--seeds=0", "--steps=30")
    assert [outcome["problems"] for outcome in outcomes] == [[]]


def test_the_check_for_orphans_sees_one() -> None:
    subprocess.run([sys.executable, "-c", LEAVE_AN_ORPHAN], cwd=REPOSITORY, check=True, timeout=120)


def test_the_check_of_shared_memory_sees_what_nobody_has_open() -> None:
    before = shared_memory()
    left, held = SHM / "chaos-test-left", SHM / "chaos-test-held"  # no names that a run clears away
    try:
        left.write_bytes(b"x")
        with held.open("wb"):
            found = left_in_shared_memory(before, 0.0)
        assert f"{left} was left behind" in found
        assert f"{held} was left behind" not in found
    finally:
        left.unlink()
        held.unlink()
