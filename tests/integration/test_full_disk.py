"""A disk that really fills up: a file system of its own in memory, where this user may mount one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.learner_world import build_world
from tests.locations import REPOSITORY

MIB = 48  # room for two checkpoints of the toy and no third


def test_a_full_disk_costs_a_checkpoint_or_ends_the_run_and_it_goes_on(tmp_path: Path) -> None:
    disk, world = tmp_path / "disk", tmp_path / "world"
    disk.mkdir()
    world.mkdir()
    # A user namespace and a mount namespace: the file system is this command's alone and goes with it.
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    mount = f"mount -t tmpfs -o size={MIB}m full {shlex.quote(str(disk))}"
    if subprocess.run([*own, mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system of its own (unshare --user --mount)")
    build_world(world)
    command = shlex.join([sys.executable, "-m", "tests.integration.full_disk_run", str(world), str(disk)])
    done = subprocess.run(
        [*own, f"{mount} && exec {command}"],
        cwd=REPOSITORY,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=300.0,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n")
    assert list(disk.iterdir()) == [], "nobody else sees it"
