"""The commands that README and docs show: what they override exists, and a run of it could start."""

from __future__ import annotations

import re
import shlex

import pytest

from mrpo.compose import compose_config
from mrpo.judge_cost.__main__ import configure as costed
from mrpo.judge_cost.__main__ import require_priced
from mrpo.plan.__main__ import configure as planned
from mrpo.sft.settings import DEFAULTS, supervised
from mrpo.submit.entrypoint import job_of
from tests.locations import REPOSITORY

PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
RUNS = ("train", "submit", "sft", "plan", "judge-cost")
OF_THE_JOB = ("ADDRESS", "JOB")  # where it goes, and no setting of a run
JUDGE = "judge.url=http://host:8000/v1 judge.model=judge"
STANDS_FOR = {  # what a reader fills in; a form with blanks inside must go before the words are split
    "<experiment>": "qwen3_vl",
    "<that folder>": "/folder",
    "<branch, tag or commit>": "main",
    "judge.url=…": "judge.url=http://host:8000/v1",
    "judge.model=…": "judge.model=judge",
    " …": f" data.root=/folder {JUDGE}",  # as in the commands before it
}


def documented() -> list[tuple[str, str]]:
    """Page and command, of the blocks of commands."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                command = line.split(" #")[0].strip()
                if re.match(rf"make ({'|'.join(RUNS)})\b|sbatch ", command):
                    found.append((page.name, command))
    return found


@pytest.mark.parametrize(("page", "command"), documented(), ids=lambda text: text)
def test_a_documented_command_composes(page: str, command: str) -> None:
    for written, filled in STANDS_FOR.items():
        command = command.replace(written, filled)
    if command.startswith("sbatch"):
        compose_config([re.sub(r"<[^>]*>", "/folder", word) for word in shlex.split(command.partition("slurm.sh")[2])])
        return
    words = dict(word.partition("=")[::2] for word in shlex.split(command)[2:])
    overrides = [
        *shlex.split(words.pop("ARGS", "")),
        *(f"experiment={name}" for name in [words.pop("EXP", None)] if name),
    ]
    overrides += [f"{name}={value}" for name, value in words.items()]
    # Whether there is a run to go on with is another question.
    overrides = [re.sub(r"<[^>]*>", "/folder", item) for item in overrides if not item.startswith("resume=")]
    if command.startswith("make sft"):
        compose_config([*DEFAULTS, *overrides], adjust=supervised)
    elif command.startswith("make plan"):
        planned(overrides)
    elif command.startswith("make judge-cost"):
        require_priced(costed(overrides)[0])
    elif command.startswith("make submit"):
        job_of([item for item in overrides if item.partition("=")[0] not in OF_THE_JOB])
    else:
        compose_config(overrides)


def test_there_are_commands_of_each_kind() -> None:
    commands = [command for _, command in documented()]
    assert all(any(command.startswith(f"make {kind}") for command in commands) for kind in RUNS)
