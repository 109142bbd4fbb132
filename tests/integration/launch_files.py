"""Reading the files that launch a cluster, and the commands in them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.locations import REPOSITORY

DOCKER = REPOSITORY / "docker"
BIN = Path(sys.executable).parent
SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET")
EXPLAINED = {  # what a reader of a header fills in
    "<folder>": "/folder",
    "<set>": "set",
    "<http://host:8000/v1>": "http://host:8000/v1",
    "<name>": "judge",
    "judge.url=…": "judge.url=http://host:8000/v1",
    "judge.model=…": "judge.model=judge",
}


def read(name: str) -> Any:
    """The one document of a YAML file under docker/."""
    return yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))


def checked(tool: str, *arguments: str) -> str:
    """What a checker says, nothing where all is well."""
    answer = subprocess.run([str(BIN / tool), *arguments], capture_output=True, text=True, check=False)
    said = answer.stdout + answer.stderr
    return said if answer.returncode else ""


def comment_commands(name: str) -> list[list[str]]:
    """Words of the commands in a file's leading comment, continuation lines joined."""
    lines = []
    for line in (DOCKER / name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    text = "\n".join(line[4:] for line in lines if line.startswith("#   ")).replace("\\\n", " ")
    for written, filled in EXPLAINED.items():
        text = text.replace(written, filled)
    return [shlex.split(line, comments=True) for line in text.splitlines()]


def overrides_of(command: list[str]) -> list[str]:
    """The overrides of `make submit …`, `sbatch … slurm.sh …` or `python -m mrpo.train …`."""
    if command[0] == "make":
        words = dict(word.partition("=")[::2] for word in command[2:])
        experiment = [f"experiment={words['EXP']}"] if "EXP" in words else []
        return [*experiment, *shlex.split(words.get("ARGS", ""))]
    if command[0] == "sbatch":
        return command[command.index("docker/slurm.sh") + 1 :]
    assert command[:3] == ["python", "-m", "mrpo.train"]
    return command[3:]


def secrets_in(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of every entry whose name is a secret's."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if SECRET.search(str(key)) and not isinstance(value, Mapping | list):
                yield f"{path}/{key}", value
            yield from secrets_in(value, f"{path}/{key}")
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from secrets_in(value, f"{path}/{number}")
