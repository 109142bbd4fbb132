"""Errors that all ranks raise together: one rank alone would leave its peers waiting in a collective."""

from __future__ import annotations

from collections.abc import Callable

from torch import distributed as dist

from mrpo.errors import MRPOError


def together(world_size: int, check: Callable[[], object]) -> None:
    """Run this rank's `check`; if it fails on any rank, the first failure is raised on every rank."""
    failure: MRPOError | None = None
    try:
        check()
    except MRPOError as error:
        failure = error
    found: list[MRPOError | None] = [failure] * world_size
    if world_size > 1:
        dist.all_gather_object(found, failure)
    for first in found:
        if first is not None:
            raise first
