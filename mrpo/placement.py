"""Who sits where: engines and learner ranks on the GPUs of a run, as `make plan` prints it and Ray is asked for it.

A bundle is what Ray places whole on one node. An engine's GPUs are one bundle, because its ranks talk at every layer of
every token. The learner's ranks of a node are one bundle, so that its collectives leave a node as little as they can.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mrpo.choices import Device, JudgeKind, Placement
from mrpo.config import Config
from mrpo.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """CPUs and GPUs of one node, and who lives on them. Where there are both engines and ranks, they share each GPU."""

    node: int | None  # number in the plan, which Ray need not follow; None: Ray decides
    cpus: int
    gpus: int
    ranks: tuple[int, ...] = ()  # of the learner, one a GPU
    engines: tuple[int, ...] = ()  # each on `rollout.tensor_parallel` GPUs, in this order
    judge: int | None = None  # a server of `judge.kind=vllm`, alone on all of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where an actor is started. Made by the composition root; read by `rollout.pool` and `learner.group`."""

    group: Any  # Ray's placement group
    bundle: int  # its number there
    num_gpus: int  # claimed by the actor; Ray then shows it these alone
    gpu_ids: tuple[str, ...] = ()  # used without a claim, because the ranks of the bundle have claimed them


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """All actors' seats; empty where none is kept (on a CPU)."""

    engines: tuple[Seat, ...] = ()
    ranks: tuple[Seat, ...] = ()
    judges: tuple[Seat, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of the plan."""

    node: int | None
    index: int  # within its node as far as the run uses it; within its bundle where Ray decides
    rank: int | None  # learner rank on it
    engine: int | None
    engine_rank: int | None  # which of the engine's tensor-parallel ranks
    judge: int | None = None  # server of the run's own judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All bundles of a run. Made by `placement_of`; read by `make plan` and by those who start actors."""

    bundles: tuple[Bundle, ...]
    tensor_parallel: int
    shared: bool  # a rank and an engine rank on every GPU but the judge's

    @property
    def num_gpus(self) -> int:
        """GPUs the run claims."""
        return sum(bundle.gpus for bundle in self.bundles)

    @property
    def num_cpus(self) -> int:
        """CPUs the run claims."""
        return sum(bundle.cpus for bundle in self.bundles)

    def bundle_of_rank(self, rank: int) -> int:
        """Number of the bundle a learner rank lives in."""
        return next(number for number, bundle in enumerate(self.bundles) if rank in bundle.ranks)

    def bundle_of_engine(self, engine: int) -> int | None:
        """Number of the bundle an engine lives in; None on CPU, where an engine claims nothing."""
        return next((number for number, bundle in enumerate(self.bundles) if engine in bundle.engines), None)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU with who lives on it, bundle by bundle."""
        used: dict[int, int] = {}  # GPUs given out so far, by node
        found: list[Gpu] = []
        for bundle in self.bundles:
            first = 0 if bundle.node is None else used.get(bundle.node, 0)
            for index in range(bundle.gpus):
                number, engine_rank = divmod(index, self.tensor_parallel)
                found.append(
                    Gpu(
                        node=bundle.node,
                        index=first + index,
                        rank=bundle.ranks[index] if bundle.ranks else None,
                        engine=bundle.engines[number] if bundle.engines else None,
                        engine_rank=engine_rank if bundle.engines else None,
                        judge=bundle.judge,
                    )
                )
            if bundle.node is not None:
                used[bundle.node] = first + bundle.gpus
        return tuple(found)


def placement_of(config: Config, *, learner: bool = True, engines: bool = True, judge: bool | None = None) -> Layout:
    """Where a run's engines, ranks and judge servers go.

    Args:
        config: of the run.
        learner: False where there is none (an evaluation).
        engines: False where there are none (supervised training, outputs generated elsewhere).
        judge: whether it is asked; None: where there are engines.

    Raises:
        ConfigError: more GPUs are asked for than `cluster.num_nodes` × `cluster.gpus_per_node`, or engines of a size
            that a node cannot be cut into; the message shows the numbers.
    """
    num_engines = config.rollout.num_engines if engines else 0
    num_ranks = config.learner.num_ranks if learner else 0
    num_judges = num_judge_servers(config) if (engines if judge is None else judge) else 0
    tensor_parallel = config.rollout.tensor_parallel
    shared = config.cluster.placement == Placement.COLOCATED and learner and engines
    if config.cluster.device == Device.CPU:
        # Engines share the machine's cores by design (`rollout.cpu_cores`); claiming some could keep them waiting.
        bundles = [Bundle(node=None, cpus=1, gpus=0, ranks=(rank,)) for rank in range(num_ranks)]
    elif shared:
        bundles = _shared_bundles(num_engines, tensor_parallel)
    else:
        bundles = _bundles_of_learner(num_ranks, config.cluster.gpus_per_node)
        bundles += [Bundle(node=None, cpus=1, gpus=tensor_parallel, engines=(engine,)) for engine in range(num_engines)]
    if config.cluster.device == Device.GPU:
        size = config.judge.vllm.tensor_parallel
        bundles += [Bundle(node=None, cpus=1, gpus=size, judge=server) for server in range(num_judges)]
    layout = Layout(bundles=tuple(bundles), tensor_parallel=tensor_parallel, shared=shared)
    _check_sum(config, layout, num_engines=num_engines, num_judges=num_judges)
    return replace(layout, bundles=_on_nodes(config, layout.bundles))


def to_begin(config: Config) -> Config:
    """The configuration with as many engines as a run needs to begin; the others join when the cluster has room."""
    return replace(config, rollout=replace(config.rollout, num_engines=config.rollout.engines_to_begin))


def num_judge_servers(config: Config) -> int:
    """Servers that a run starts for its judge, each on GPUs of its own where there are any."""
    return config.judge.vllm.num_servers if config.judge.kind == JudgeKind.VLLM else 0


def _shared_bundles(num_engines: int, tensor_parallel: int) -> list[Bundle]:
    """A bundle an engine, with as many ranks as it has GPUs."""
    return [
        Bundle(
            node=None,
            cpus=tensor_parallel + 1,
            gpus=tensor_parallel,
            ranks=tuple(range(engine * tensor_parallel, (engine + 1) * tensor_parallel)),
            engines=(engine,),
        )
        for engine in range(num_engines)
    ]


def _bundles_of_learner(num_ranks: int, gpus_per_node: int) -> list[Bundle]:
    """Whole nodes and the rest; single GPUs where nobody said how many a node has."""
    size = gpus_per_node or 1
    starts = range(0, num_ranks, size)
    ranks = [tuple(range(start, min(start + size, num_ranks))) for start in starts]
    return [Bundle(node=None, cpus=len(part), gpus=len(part), ranks=part) for part in ranks]


def _on_nodes(config: Config, bundles: tuple[Bundle, ...]) -> tuple[Bundle, ...]:
    """Number the nodes: each bundle goes to the first that has room."""
    cluster = config.cluster
    if cluster.num_nodes == 1:
        return tuple(replace(bundle, node=0) for bundle in bundles)
    if not cluster.gpus_per_node or cluster.device == Device.CPU:
        return bundles
    free = [cluster.gpus_per_node] * cluster.num_nodes
    nodes: dict[int, int] = {}
    # The largest first: what whole nodes of ranks leave is cut by divisors of a node.
    for number, bundle in sorted(enumerate(bundles), key=lambda item: -item[1].gpus):
        fitting = [node for node, gpus in enumerate(free) if gpus >= bundle.gpus]
        if not fitting:
            raise ConfigError(
                f"{bundle.gpus} GPUs of one node are needed together, and of {cluster.num_nodes} nodes of "
                f"cluster.gpus_per_node={cluster.gpus_per_node} none has as many left; choose sizes of "
                "rollout.tensor_parallel and judge.vllm.tensor_parallel that divide each other, or add a node"
            )
        nodes[number] = fitting[0]
        free[fitting[0]] -= bundle.gpus
    return tuple(replace(bundle, node=nodes[number]) for number, bundle in enumerate(bundles))


def _check_sum(config: Config, layout: Layout, *, num_engines: int, num_judges: int) -> None:
    """Refuse more GPUs than the machines are said to have, and engines that a node cannot be cut into."""
    cluster = config.cluster
    there = cluster.num_nodes * cluster.gpus_per_node
    if cluster.device == Device.CPU or not there:
        return
    if num_engines and cluster.gpus_per_node % layout.tensor_parallel:
        raise ConfigError(
            f"rollout.tensor_parallel={layout.tensor_parallel} does not divide cluster.gpus_per_node="
            f"{cluster.gpus_per_node}, and an engine's GPUs lie on one node; choose a divisor"
        )
    size = config.judge.vllm.tensor_parallel
    if num_judges and cluster.gpus_per_node % size:
        raise ConfigError(
            f"judge.vllm.tensor_parallel={size} does not divide cluster.gpus_per_node={cluster.gpus_per_node}, and a "
            "server's GPUs lie on one node; choose a divisor"
        )
    if layout.num_gpus <= there:
        return
    parts = sum_of_gpus(config, layout)
    fewer = "rollout.num_engines, judge.vllm.num_servers" if num_judges else "rollout.num_engines"
    raise ConfigError(
        f"{parts} = {layout.num_gpus} GPUs are more than cluster.num_nodes={cluster.num_nodes} × "
        f"cluster.gpus_per_node={cluster.gpus_per_node} = {there}; choose a larger cluster=… or lower {fewer} or "
        "learner.num_ranks"
    )


def sum_of_gpus(config: Config, layout: Layout) -> str:
    """The arithmetic of a layout in words."""
    num_engines = sum(len(bundle.engines) for bundle in layout.bundles)
    num_ranks = sum(len(bundle.ranks) for bundle in layout.bundles)
    num_judges = sum(bundle.judge is not None for bundle in layout.bundles)
    engines = f"{num_engines} engines × {config.rollout.tensor_parallel}"
    parts = [engines] if num_engines else []
    if num_ranks and num_engines and config.cluster.placement == Placement.COLOCATED:
        parts = [f"{engines} shared with {num_ranks} learner ranks"]
    elif num_ranks:
        parts.append(f"{num_ranks} learner ranks")
    if num_judges:
        parts.append(f"{num_judges} judge servers × {config.judge.vllm.tensor_parallel}")
    return " + ".join(parts)
