"""`python -m mrpo.submit --address=<dashboard> [--job=<id>] [overrides]`: train on a Ray cluster, from anywhere.

Exit codes: that of the job; 143 it was stopped, 2 it could not be submitted (one line says why), 1 the cluster does not
answer any more, 130 Ctrl-C, which ends the following and leaves the job running.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mrpo.command_line import INTERRUPTED, exit_code, quiet_libraries
from mrpo.submit.address import jobs_url
from mrpo.submit.entrypoint import job_of


def main(arguments: Sequence[str]) -> int:
    """Submit and follow, or follow a job that was submitted before; returns the exit code."""
    return exit_code(lambda: _submit(arguments))


def _submit(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="mrpo.submit", allow_abbrev=False)
    parser.add_argument("--address", default="", help="of the cluster's dashboard")
    parser.add_argument("--job", default="", help="follow this one instead of submitting another")
    given, overrides = parser.parse_known_args(arguments)
    job = job_of(overrides) if not given.job else None
    url = jobs_url(given.address)
    from mrpo.submit.client import connect, follow, submit  # Ray: slower to import than a typo is to report

    console = Console(stderr=True, highlight=False)
    client = connect(url)
    name = given.job
    if job is not None:
        submit(client, job)
        name = job.name
        console.print(f"submitted as {job.name}: {job.entrypoint}", soft_wrap=True)
    ray = Path(sys.executable).with_name("ray")
    console.print(
        f"Ctrl-C leaves it running; follow it again with make submit ADDRESS={url} JOB={name}, "
        f"stop it with {ray} job stop --address={url} {name}",
        soft_wrap=True,
    )
    try:
        code = asyncio.run(follow(client, name, _write))
    except KeyboardInterrupt:
        console.print(f"\njob {name} goes on")
        return INTERRUPTED
    console.print(f"job {name} ended with exit code {code}")
    return code


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
