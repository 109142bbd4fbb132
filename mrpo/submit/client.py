"""A job on a cluster: submitted, followed to its end, its exit code handed on."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from mrpo.errors import ClusterError, MRPOError
from mrpo.submit.address import FROM_ENVIRONMENT, require_answer
from mrpo.submit.entrypoint import Job

STOPPED = 143  # 128 + SIGTERM, which is what Ray sends to a job that is stopped
FAILED = 1  # where there is no code: the command did not start, or its node was lost
QUIET_S = 60.0  # without a line of log, before the job's state is asked for
STALE_S = 600.0  # without one, before the log is opened again: a firewall may have dropped the connection unsaid
LOST_S = 120.0  # without an answer, before following is given up
RETRY_S = 2.0
LOST = (RuntimeError, OSError, aiohttp.ClientError, asyncio.TimeoutError)  # a broken connection, as the layers say it


def connect(url: str) -> Any:
    """A client of the Jobs API at `url`, and at no other: Ray would let its environment variables override it.

    Raises:
        ClusterError: nobody answers there, or the token is wrong.
    """
    require_answer(url)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of every closed connection
    for name in FROM_ENVIRONMENT:
        os.environ.pop(name, None)
    try:
        return JobSubmissionClient(url)
    except AuthenticationError:
        raise ClusterError(
            f"{url} wants a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's"
        ) from None
    except (RuntimeError, ConnectionError) as error:
        raise ClusterError(f"{url} takes no jobs: {error}") from None


def submit(client: Any, job: Job) -> None:
    """Submit it.

    Raises:
        ClusterError: the cluster refused.
    """
    try:
        client.submit_job(entrypoint=job.entrypoint, submission_id=job.name, metadata={"experiment": job.experiment})
    except (RuntimeError, ConnectionError) as error:
        raise ClusterError(f"the cluster did not take the job: {error}") from None


async def follow(client: Any, name: str, write: Callable[[str], object]) -> int:
    """Write the job's log as it grows, each character once, also over broken connections; the job's exit code.

    Args:
        client: of `connect`.
        name: the job's id.
        write: takes pieces of the log.

    Raises:
        ClusterError: there is no such job.
        MRPOError: the cluster has not answered for `LOST_S`.
    """
    try:
        client.get_job_info(name)
    except RuntimeError:
        raise ClusterError(f"the cluster knows no job {name!r}; `ray job list` names those it has") from None
    shown = 0  # characters; a log that is opened again begins at its beginning
    lost: float | None = None  # since when, while nobody answers
    code: int | None = None
    while True:
        ended = code  # as known before the log is opened, which shows all of it then
        position = 0
        try:
            async for text in _pieces(client, name):
                lost = None
                position += len(text)
                if position > shown:
                    write(text[shown - position :])
                    shown = position
            if ended is not None:
                return ended
            code = _exit_code(client, name)
            lost = None
            if code is not None:
                continue
        except LOST as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > LOST_S:
                if ended is not None:
                    return ended
                raise MRPOError(
                    f"the cluster is silent for {LOST_S:g} s ({error}); the job may go on, follow it with JOB={name}"
                ) from None
        await asyncio.sleep(RETRY_S)


async def _pieces(client: Any, name: str) -> AsyncIterator[str]:
    """The log from its beginning until it is closed; a silent connection is left, and may have hidden the rest."""
    pieces = client.tail_job_logs(name)
    heard = time.monotonic()
    waiting: asyncio.Future[str | None] = asyncio.ensure_future(anext(pieces, None))
    try:
        while True:
            if not (await asyncio.wait({waiting}, timeout=QUIET_S))[0]:
                if _exit_code(client, name) is not None or time.monotonic() - heard > STALE_S:
                    return
                continue
            text = waiting.result()
            if text is None:
                return
            heard = time.monotonic()
            waiting = asyncio.ensure_future(anext(pieces, None))
            yield text
    finally:
        waiting.cancel()
        await asyncio.wait({waiting})
        await pieces.aclose()


def _exit_code(client: Any, name: str) -> int | None:
    """None while it runs."""
    info = client.get_job_info(name)
    if not info.status.is_terminal():
        return None
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        return STOPPED
    return info.driver_exit_code or FAILED
