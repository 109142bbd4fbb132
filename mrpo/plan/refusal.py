"""A plan that does not fit in one line: for `make plan`, and as a note where a run starts all the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mrpo.choices import Device
from mrpo.config import Config
from mrpo.errors import UserError
from mrpo.plan.memory import GIB
from mrpo.plan.plan import Plan, make_plan
from mrpo.plan.remedies import Remedy, remedies_of


def refusal_of(plan: Plan, remedies: Sequence[Remedy]) -> str:
    """What does not fit where, and what would."""
    short = [
        f"{place.name}: {place.shortage or f'{place.memory.total / GIB:,.1f} of {place.limit / GIB:,.1f} GiB'}"
        for place in plan.places
        if not place.fits
    ]
    cure = " or ".join(f'ARGS="{remedy.text}"' for remedy in remedies)
    return f"experiment {plan.config.experiment} does not fit ({'; '.join(short)}); " + (
        f"would fit: {cure}" if cure else "no setting tried makes it fit: take more or larger GPUs, or a smaller model"
    )


def memory_note(config: Config) -> str | None:
    """For a run on GPUs that is about to start: what the plan says where it does not fit; None where it does.

    A plan is an estimate, so that a run is warned and not refused; one that cannot be made says why. On this machine
    alone the GPUs' own memory counts where it is less than `cluster.gpu_memory_gib`.
    """
    if config.cluster.device != Device.GPU:
        return None
    try:
        plan = make_plan(_on_these_gpus(config))
    except UserError as error:
        return f"no memory plan: {error}"
    return None if plan.fits else f"memory plan: {refusal_of(plan, remedies_of(plan))}"


def _on_these_gpus(config: Config) -> Config:
    if config.cluster.address is not None:
        return config
    import torch

    sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    there = min((config.cluster.gpu_memory_gib, *(size / GIB for size in sizes)))
    return replace(config, cluster=replace(config.cluster, gpu_memory_gib=there))
