"""The plan as text for people: tables of at most 100 columns."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mrpo.choices import Device
from mrpo.placement import Gpu, num_judge_servers
from mrpo.plan.memory import GIB, MIB, Part
from mrpo.plan.plan import Place, Plan
from mrpo.plan.remedies import Remedy

WIDTH = 100


def show(plan: Plan, remedies: list[Remedy], console: Console) -> None:
    """Print the whole plan."""
    console.print(render(plan, remedies), width=min(console.width, WIDTH) if console.is_terminal else WIDTH)


def render(plan: Plan, remedies: list[Remedy]) -> RenderableType:
    """Model, actors, memory, workload, notes and verdict."""
    parts: list[RenderableType] = [model_line(plan), actors(plan), memory(plan), workload(plan)]
    parts += [Text(f"note: {note}", style="yellow") for note in plan.notes]
    parts += [Text(f"{place.name}: {place.shortage}", style="red") for place in plan.places if place.shortage]
    parts += [Text(f"would fit: {remedy.text}\n  ({remedy.what})", style="bold") for remedy in remedies]
    return Group(*parts, Text("Estimated, never measured on a GPU; docs/plan.md says what is not in it.", style="dim"))


def model_line(plan: Plan) -> Text:
    """Sizes of the model and what of it is trained."""
    counts, learner = plan.rank.counts, plan.config.learner
    how = f"adapters of rank {learner.lora.r}" if learner.lora.r else "full fine-tuning"
    return Text(
        f"{plan.architecture.family.model_type}: {counts.total:,} parameters ({counts.vision / 1e6:,.0f} M of them "
        f"vision), {counts.trainable:,} trained ({how}), ZeRO-{learner.zero_stage}"
        f"{', offload' if learner.cpu_offload else ''}"
        f"{', gradient checkpointing' if learner.gradient_checkpointing else ''}; sizes: {plan.architecture.source}"
    )


def actors(plan: Plan) -> Table:
    """Who sits where."""
    config = plan.config
    table = Table(title="Actors", title_justify="left")
    table.add_column("node")
    table.add_column("GPUs")
    table.add_column("who")
    if config.cluster.device == Device.CPU:
        judges = num_judge_servers(config)
        who = f"{config.rollout.num_engines} engine(s), {config.learner.num_ranks} learner rank(s)"
        table.add_row("0", "–", who + (f", {judges} judge server(s)" if judges else ""))
    for (node, _), group in groupby(plan.layout.gpus, key=lambda gpu: (gpu.node, _kind(gpu))):
        gpus = list(group)
        indices = _span([gpu.index for gpu in gpus])
        table.add_row("any" if node is None else str(node), indices, _who(gpus))
    table.add_row("0", "–", "command, judge's clients and answer scoring (no GPU)")
    return table


def _kind(gpu: Gpu) -> tuple[bool, bool, bool]:
    return gpu.rank is not None, gpu.engine is not None, gpu.judge is not None


def _who(gpus: list[Gpu]) -> str:
    ranks = [gpu.rank for gpu in gpus if gpu.rank is not None]
    engines = sorted({gpu.engine for gpu in gpus if gpu.engine is not None})
    judges = sorted({gpu.judge for gpu in gpus if gpu.judge is not None})
    if judges:
        each = sum(gpu.judge == judges[0] for gpu in gpus)
        return f"judge server {_span(judges)}" + (f", {each} GPUs each" if each > 1 else "")
    parts = []
    if ranks:
        parts.append(f"learner rank {_span(ranks)}")
    if engines:
        each = sum(gpu.engine == engines[0] for gpu in gpus)
        parts.append(f"engine {_span(engines)}" + (f", {each} GPUs each" if each > 1 else ""))
    return " and ".join(parts) + (", in turns" if len(parts) > 1 else "")


def _span(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def memory(plan: Plan) -> Table:
    """A column a place, a row a part, at the moment when the place holds most."""
    table = Table(title=f"Memory of one, {_unit(plan)[1]}, when it holds most", title_justify="left")
    table.add_column("")
    for place in plan.places:
        table.add_column(f"{place.name}\n{place.number} ×", justify="right")
    for part in Part:
        sizes = [place.memory.parts.get(part, 0) for place in plan.places]
        if any(sizes):
            table.add_row(part.value, *(_size(size, plan) if size else "" for size in sizes))
    table.add_section()
    table.add_row("sum", *(_size(place.memory.total, plan) for place in plan.places), style="bold")
    table.add_row("limit", *(_size(place.limit, plan) for place in plan.places))
    table.add_row("", *(_verdict(place) for place in plan.places))
    table.add_row("moment", *(place.memory.phase for place in plan.places), style="dim")
    return table


def _verdict(place: Place) -> Text:
    return Text("fits", style="green") if place.fits else Text("does not fit", style="bold red")


def _unit(plan: Plan) -> tuple[int, str]:
    return (GIB, "GiB") if plan.rank.counts.total > 10**8 else (MIB, "MiB")


def _size(size: int, plan: Plan) -> str:
    return f"{size / _unit(plan)[0]:,.1f}"


def workload(plan: Plan) -> Table:
    """Tokens of a step, and what engines hold at a time."""
    load, engine, config = plan.workload, plan.engine, plan.config
    table = Table(title="A step, at its largest", title_justify="left", show_header=False)
    prompt = f"{load.prompt_tokens:,} tokens, {load.image_tokens:,} of them of the image"
    rows = [
        ("prompt", prompt),
        ("completion", f"{load.completion_tokens:,} tokens"),
        ("completions", f"{load.completions} ({config.rollout.prompts_per_step} × {config.rollout.group_size})"),
        ("tokens in all", f"{load.completions * load.sample_tokens:,}"),
        (
            "a learner rank",
            f"{load.micro_batches} micro-batches of {load.completions_per_micro_batch} completions "
            f"(budget {config.learner.tokens_per_micro_batch:,} tokens)",
        ),
        (
            "an engine's cache",
            f"{engine.cache_tokens:,} tokens of {engine.bytes_per_token * config.rollout.tensor_parallel:,} bytes: "
            f"{engine.expected_concurrent} such sequences at a time, {engine.concurrent} of "
            f"{config.rollout.max_model_len:,} tokens",
        ),
    ]
    for row in rows:
        table.add_row(*row)
    return table
