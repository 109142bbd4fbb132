"""An environment keeps the device it was installed for, whatever the machine that uses it has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.locations import REPOSITORY

INSTALL = "uv pip install"


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What make would do, in an environment that sets none of its variables."""
    own = {
        key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key not in ("DEVICE", "VENV")
    }
    return subprocess.run(["make", *arguments], cwd=REPOSITORY, env=own, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("device", "other"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_an_environment_is_used_as_it_is_and_never_becomes_another_devices(
    device: str, other: str, tmp_path: Path
) -> None:
    environment = f"VENV={tmp_path}"
    (tmp_path / f".installed-{device}").touch()
    for arguments in ([], [f"DEVICE={device}"]):
        plan = make("-n", "plan", environment, *arguments)
        assert plan.returncode == 0, plan.stderr
        assert INSTALL not in plan.stdout
        assert "mrpo.plan" in plan.stdout
    assert make("-q", "setup", environment).returncode == 0  # nothing is left to do
    refused = make("-n", "plan", environment, f"DEVICE={other}")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert f"is installed for {device}, and this is DEVICE={other}" in refused.stderr
    assert make("-n", "clean", environment, f"DEVICE={other}").returncode == 0


def test_an_environment_with_packages_of_both_is_refused(tmp_path: Path) -> None:
    for device in ("cpu", "gpu"):
        (tmp_path / f".installed-{device}").touch()
    for arguments in ([], ["DEVICE=cpu"], ["DEVICE=gpu"]):
        refused = make("-n", "plan", f"VENV={tmp_path}", *arguments)
        assert refused.returncode == 2
        assert "make clean first" in refused.stderr


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_new_environment_is_for_the_device_that_is_named(device: str, tmp_path: Path) -> None:
    setup = make("-n", "setup", f"VENV={tmp_path / 'new'}", f"DEVICE={device}")
    assert f"-r requirements/{device}.txt" in setup.stdout
    assert f"touch {tmp_path}/new/.installed-{device}" in setup.stdout
