"""What an image installs: the wheel holds all that the commands read, and runs from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.locations import REPOSITORY

UV = Path(sys.executable).with_name("uv")
PACKAGES = ("mrpo", "judge", "rollout", "learner", "conf")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [str(UV), "build", "--quiet", "--wheel", "--offline", "--no-build-isolation", f"--out-dir={out}"]
    subprocess.run([*command, f"--python={sys.executable}", str(REPOSITORY)], check=True, timeout=300)
    (found,) = out.glob("*.whl")
    return found


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    there = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", *PACKAGES], capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("no git checkout: which files belong is not known")
    assert set(tracked) - there == set()


def test_it_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [str(UV), "pip", "install", "--quiet", "--offline", "--no-deps", f"--target={target}", str(wheel)]
    subprocess.run([*command, f"--python={sys.executable}"], check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    code = "import sys, mrpo, conf; sys.stdout.write(mrpo.__file__ + ' ' + conf.__file__)"
    where = subprocess.run([sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True)
    assert where.stdout.split() == [str(target / "mrpo" / "__init__.py"), str(target / "conf" / "__init__.py")]
    plan = [sys.executable, "-m", "mrpo.plan", "experiment=internvl3", "cluster=4x_gpu"]
    answer = subprocess.run(plan, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
