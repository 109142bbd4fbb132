"""`make wheelhouse` and `make setup WHEELHOUSE=…` with real pip and uv, on a few packages and without a network."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from mrpo.wheelhouse.__main__ import main
from mrpo.wheelhouse.manifest import read_manifest
from tests.locations import REPOSITORY

INSTALL_S = 300
NOWHERE = "http://127.0.0.1:9"  # the discard port: refuses at once


def tiny_wheel(folder: Path, name: str, version: str) -> None:
    """A real wheel of one module."""
    stem = f"{name}-{version}"
    files = {
        f"{name}.py": "",
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{stem}.dist-info/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{stem}.dist-info/RECORD"])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


def test_gathering_goes_on_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index, house = tmp_path / "index", tmp_path / "house"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    names = [f"tiny{number}" for number in range(10)]  # more than one call of pip
    for name in names[:8]:
        tiny_wheel(index, name, "1.0")
    (tmp_path / "cpu.txt").write_text("".join(f"{name}==1.0\n" for name in names))
    arguments = ["gather", str(house), "--requirements", str(tmp_path / "cpu.txt")]
    assert main(arguments) == 2
    assert "tiny8==1.0" in caplog.text
    assert "goes on from here" in caplog.text
    kept = {path.name: path.stat().st_ino for path in house.glob("unfinished-*/*.whl")}
    assert len(kept) == 8
    for path in index.iterdir():
        path.unlink()
    for name in names[8:]:
        tiny_wheel(index, name, "1.0")
    assert main(arguments) == 0  # with an index that no longer has what was fetched
    assert len(read_manifest(house).wheels) == 10
    assert sorted(path.name for path in house.iterdir()) == ["manifest.json", "part-0001"]


def repacked(folder: Path, name: str) -> str:
    """The wheel of an installed package, made again from its files; returns its pin."""
    found = distribution(name)
    stem = f"{name}-{found.version}"
    tag = next(line[5:] for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: "))
    record = []
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as wheel:
        for file in found.files or []:
            if file.suffix == ".pyc" or file.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                continue
            path = file.as_posix()
            if "/bin/" in path:
                path = f"{stem}.data/scripts/{file.name}"
            content = Path(str(file.locate())).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(content)}")
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o100755 << 16  # a program stays one
            wheel.writestr(entry, content)
        own = f"{stem}.dist-info/RECORD"
        wheel.writestr(own, "".join(f"{line}\n" for line in [*record, f"{own},,"]))
    return f"{name}=={found.version}\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """This project with two packages to install, one of them what its own installation needs."""
    root = tmp_path / "checkout"
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in ("mrpo", "judge", "rollout", "learner", "conf"):
        shutil.copytree(REPOSITORY / package, root / package, ignore=skipped)
    for file in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, root / file)
    index = tmp_path / "index"
    (root / "requirements").mkdir()
    tiny_wheel(index, "tiny", "1.0")
    (root / "requirements" / "cpu.txt").write_text("tiny==1.0\n" + repacked(index, "setuptools"))
    (root / "requirements" / "tools.txt").write_text(repacked(index, "uv"))
    return root


def test_a_host_without_a_network_installs_from_a_wheelhouse(tmp_path: Path, checkout: Path) -> None:
    house, environment = tmp_path / "house", tmp_path / "venv"

    def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = ["make", *arguments, "DEVICE=cpu", f"PYTHON={sys.executable}", f"VENV={environment}"]
        surroundings = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_", "MAKE"))}
        return subprocess.run(
            command, cwd=checkout, env=surroundings | variables, capture_output=True, text=True, timeout=INSTALL_S
        )

    gathered = make(
        "wheelhouse", f"OUT={house}", "PART_MIB=10", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "index")
    )
    assert gathered.returncode == 0, gathered.stderr
    assert len(read_manifest(house).parts) > 1

    addresses = ("PIP_INDEX_URL", "PIP_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
    proxies = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    offline = dict.fromkeys((*addresses, *proxies), NOWHERE)
    part = house / "part-0001"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused = make("setup", f"WHEELHOUSE={house}", **offline)
    assert refused.returncode != 0
    assert "part-0001 is damaged" in refused.stderr
    assert not (environment / "bin").exists()

    part.write_bytes(whole)
    installed = make("setup", f"WHEELHOUSE={house}", **offline)
    assert installed.returncode == 0, installed.stderr
    python = str(environment / "bin" / "python")
    check = "import tiny, mrpo; print(mrpo.__file__)"
    answer = subprocess.run([python, "-c", check], cwd="/", capture_output=True, text=True, check=False)
    assert answer.stdout.strip() == str(checkout / "mrpo" / "__init__.py"), answer.stderr
    assert not (environment / ".wheels").exists()
    assert make("setup", "-q", **offline).returncode == 0  # nothing left to do, also without naming it again
