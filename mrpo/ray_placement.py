"""A layout made real: bundles reserved in Ray before anything starts, and the seats that actors take there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mrpo.errors import ResourceError
from mrpo.placement import Layout, Seat, Seats

RESERVE_TIMEOUT_S = 60.0  # a run that ended a moment ago gives its GPUs back in seconds


@asynccontextmanager
async def reserved(layout: Layout, *, timeout_s: float = RESERVE_TIMEOUT_S) -> AsyncIterator[Seats]:
    """Hold every bundle of a layout of GPUs until the context is left. Ray must be up.

    Raises:
        ResourceError: the bundles are not free together; the message shows what is asked for and what is there.
    """
    # PACK fills a node before it takes the next; that a bundle lies on one node holds under every strategy.
    wanted = [{"CPU": float(bundle.cpus), "GPU": float(bundle.gpus)} for bundle in layout.bundles]
    group = placement_group(wanted, strategy="PACK")
    try:
        try:
            async with asyncio.timeout(timeout_s):
                await group.ready()
        except TimeoutError:
            raise ResourceError(
                f"{len(wanted)} bundles with {layout.num_gpus} GPUs and {layout.num_cpus} CPUs, each bundle on one "
                f"node, are not free within {timeout_s:.0f} s: asked for {wanted}, free {_free()}; end other runs, "
                "add nodes, or choose a smaller cluster=…"
            ) from None
        yield await _seats(layout, group)
    finally:
        remove_placement_group(group)


async def _seats(layout: Layout, group: PlacementGroup) -> Seats:
    """Ranks claim a GPU each. An engine claims its own, or is told of those that the ranks beside it will have."""
    shown: dict[int, tuple[str, ...]] = {}
    if layout.shared:
        # Asked of a passing claim on the whole bundle: Ray gives a bundle the same GPUs for as long as it is held.
        shown = dict(enumerate(await asyncio.gather(*_ask_bundles(layout, group))))
    engines: dict[int, Seat] = {}
    ranks: dict[int, Seat] = {}
    judges: dict[int, Seat] = {}
    for number, bundle in enumerate(layout.bundles):
        claimed = 0 if layout.shared else layout.tensor_parallel
        for engine in bundle.engines:
            engines[engine] = Seat(group=group, bundle=number, num_gpus=claimed, gpu_ids=shown.get(number, ()))
        for rank in bundle.ranks:
            ranks[rank] = Seat(group=group, bundle=number, num_gpus=1)
        if bundle.judge is not None:
            judges[bundle.judge] = Seat(group=group, bundle=number, num_gpus=bundle.gpus)
    return Seats(engines=_in_order(engines), ranks=_in_order(ranks), judges=_in_order(judges))


def _in_order(seats: dict[int, Seat]) -> tuple[Seat, ...]:
    return tuple(seats[number] for number in sorted(seats))


def _ask_bundles(layout: Layout, group: PlacementGroup) -> list[Any]:
    """References to the ids of each bundle's GPUs."""
    ask = ray.remote(_visible_gpus)
    return [
        ask.options(
            num_cpus=0, num_gpus=bundle.gpus, scheduling_strategy=PlacementGroupSchedulingStrategy(group, number)
        ).remote()
        for number, bundle in enumerate(layout.bundles)
    ]


def _visible_gpus() -> tuple[str, ...]:
    """Ids of the GPUs that Ray gives to this task, as CUDA_VISIBLE_DEVICES takes them."""
    return tuple(map(str, ray.get_runtime_context().get_accelerator_ids()["GPU"]))


def _free() -> str:
    free = ray.available_resources()
    return f"{free.get('GPU', 0.0):g} GPUs and {free.get('CPU', 0.0):g} CPUs in all"


def node_address() -> str:
    """Of this machine, as other nodes of the cluster reach it."""
    return str(ray.util.get_node_ip_address())
