"""An engine's actor as Ray is asked for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mrpo.choices import Device
from mrpo.placement import Seat
from rollout.sampling import OWNED_PER_SEQUENCE
from rollout.spec import EngineSpec
from rollout.worker import CONTROL, RolloutWorker

NUM_CONTROL_CALLS = 16  # at once; one of them for as long as the actor lives
NUM_OTHER_CALLS = 16  # at once, beside the streams of completions: scores, weights


def make_actor(spec: EngineSpec, seat: Seat | None, name: str) -> Any:
    """An actor of this name with an engine in it."""
    on_gpu = spec.device == Device.GPU
    options: dict[str, Any] = {
        "name": name,
        # On CPU the cores are shared by design (`rollout.cpu_cores`); claiming them could keep an actor waiting.
        "num_cpus": 1 if on_gpu else 0,
        "num_gpus": spec.rollout.tensor_parallel if on_gpu else 0,
        "resources": dict(spec.rollout.resources) or None,
        # A stream holds its place until the last of its requests ends, and may have been opened for one alone.
        "max_concurrency": OWNED_PER_SEQUENCE * spec.rollout.max_num_seqs + NUM_OTHER_CALLS,
    }
    if seat is not None:
        options["num_gpus"] = seat.num_gpus
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(seat.group, seat.bundle)
        spec = replace(spec, gpu_ids=seat.gpu_ids)
    actor_class: Any = ray.remote(concurrency_groups={CONTROL: NUM_CONTROL_CALLS})(RolloutWorker)
    return actor_class.options(**options).remote(replace(spec, actor_name=name))
