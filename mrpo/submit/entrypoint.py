"""What a job runs on the cluster: the installed package's command with the overrides, checked before it is sent."""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mrpo.compose import compose_config

ADDRESS = "cluster.address"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job to submit; made by `job_of`, used by `mrpo.submit.client`."""

    name: str  # its id in Ray, unique there
    entrypoint: str  # shell command
    experiment: str


def job_of(overrides: Sequence[str]) -> Job:
    """The job that trains with `overrides` on the cluster it is submitted to.

    Args:
        overrides: as `mrpo.train` takes them. Without `cluster.address` the run joins the Ray that runs the job;
            without `run_name` and `resume` it is named after the job.

    Raises:
        ConfigError: they do not compose; better said here than in a job's log.
    """
    overrides = list(overrides)
    given = {item.lstrip("+").partition("=")[0] for item in overrides}
    if ADDRESS not in given:
        overrides.append(f"{ADDRESS}=auto")
    experiment = compose_config(overrides).experiment
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    name = f"{experiment}-{stamp}-{secrets.token_hex(2)}"
    if not given & {"run_name", "resume"}:
        overrides.append(f"run_name={name}")
    entrypoint = shlex.join(["python", "-m", "mrpo.train", *overrides])
    return Job(name=name, entrypoint=entrypoint, experiment=experiment)
