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
        overrides: as `mrpo.train` takes them. Without `cluster.address` the run joins the Ray that runs the job.

    Raises:
        ConfigError: they do not compose; better said here than in a job's log.
    """
    overrides = list(overrides)
    if not any(item.lstrip("+").startswith(f"{ADDRESS}=") for item in overrides):
        overrides.append(f"{ADDRESS}=auto")
    experiment = compose_config(overrides).experiment
    entrypoint = shlex.join(["python", "-m", "mrpo.train", *overrides])
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return Job(name=f"{experiment}-{stamp}-{secrets.token_hex(2)}", entrypoint=entrypoint, experiment=experiment)
