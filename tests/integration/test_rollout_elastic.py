"""Engines join with a node and are lost with one, while completions are sampled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.locations import REPOSITORY

TIMEOUT_S = 900.0


@pytest.mark.slow
def test_engines_come_and_go_with_their_nodes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.elastic_engines", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["begun_with"] == ["up", "pending"], "a run begins while an engine has no place"
    assert found["num_nodes"] == 2
    assert found["same_when_a_node_is_lost"]
    assert found["left_with"] in (["lost", "up"], ["pending", "up"])
    assert not found["orphan"]
    assert found["same_afterwards"]
    ((kind, who, recovery_s),) = found["faults"]
    assert (kind, who) == ("engine_lost", "engine-0")
    assert recovery_s > 0
