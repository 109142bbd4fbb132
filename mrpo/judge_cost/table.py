"""The estimate as text for people: tables of at most 100 columns."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mrpo.choices import JudgeKind
from mrpo.config import Config
from mrpo.judge_cost.estimate import RETRY_SHARE, Estimate, Size, budget_ends, minutes, money, only_measures

WIDTH = 100  # columns, where the output is no terminal
FREE = (JudgeKind.ORACLE, JudgeKind.LEXICAL, JudgeKind.VLLM)  # run on this machine or on GPUs of the run

# Label, of one call, of the run.
ROWS = (
    ("rubric", "rubric", ""),
    ("question and gold", "question", ""),
    ("the completion's part", "own", ""),
    ("prompt", "prompt", "prompt"),
    ("– its image", "image", "image"),
    ("– repeats a beginning", "", "cacheable"),
    ("reply", "reply", "completion"),
    ("tokens", "", "tokens"),
)


def show(config: Config, found: Estimate, console: Console) -> None:
    """Print the whole estimate."""
    console.print(render(config, found))


def render(config: Config, found: Estimate) -> RenderableType:
    """Calls, tokens, money, time, budgets and notes."""
    parts: list[RenderableType] = [calls(found), tokens(config, found), times(config, found)]
    parts += [Text(line, style="red" if is_bad else "") for line, is_bad in budgets(config, found)]
    parts += [Text(f"note: {note}", style="yellow") for note in notes(config, found)]
    return Group(*parts)


def calls(found: Estimate) -> Table:
    """How often the judge is asked, and when."""
    table = Table(title="Calls", title_justify="left")
    for name in ("part of the run", "questions × completions", "times", "about steps", "about answers"):
        table.add_column(name, justify="left" if name == "part of the run" else "right")
    for phase in found.phases:
        shape = f"{phase.num_questions:,.0f} × {phase.group_size}"
        numbers = (f"{phase.times:,}", f"{phase.step_calls:,.0f}", f"{phase.answer_calls:,.0f}")
        table.add_row(phase.name, shape, *numbers)
    steps, answers = (
        sum(values) for values in zip(*((p.step_calls, p.answer_calls) for p in found.phases), strict=True)
    )
    table.add_section()
    table.add_row(f"{found.requests:,.0f} requests", "", "", f"{steps:,.0f}", f"{answers:,.0f}")
    return table


def tokens(config: Config, found: Estimate) -> Table:
    """Of one call, of the run, and what they cost."""
    table = Table(title="Tokens and money", title_justify="left")
    table.add_column("")
    asked = [("about steps", found.step_call), ("about an answer", found.answer_call)]
    calls = [(label, call) for label, call in asked if call is not None]
    for name in (*(f"one call {label}" for label, _ in calls), "the run", "at most"):
        table.add_column(name, justify="right")
    sizes = (found.expected, found.most)
    for label, one, whole in ROWS:
        each = [f"{getattr(call, one):,.0f}" if one else "" for _, call in calls]
        table.add_row(label, *each, *(_million(getattr(size, whole)) if whole else "" for size in sizes))
    table.add_section()
    for label, cached in (("cost by judge.prices", False), ("cost, repeats cached", True)):
        table.add_row(label, *("" for _ in calls), *(_cost(size, config, cached=cached) for size in sizes))
    return table


def times(config: Config, found: Estimate) -> Table:
    """The least time by limit; judging runs beside generation, so that only a part of it is waited for."""
    table = Table(title="Minutes of judging, at least", title_justify="left")
    table.add_column("by")
    table.add_column("minutes", justify="right")
    for name, value in sorted(minutes(found, config.judge).items(), key=lambda item: -item[1]):
        table.add_row(name, f"{value:,.1f}")
    return table


def budgets(config: Config, found: Estimate) -> list[tuple[str, bool]]:
    """A line for each budget, and whether it is too small."""
    lines: list[tuple[str, bool]] = []
    for setting, share, step in budget_ends(found, config):
        if step is None:
            lines.append((f"{setting}: the run takes {share:.0%} of it", False))
        else:
            where = f"in about step {step} of {config.num_steps}" if step else "before training begins"
            lines.append((f"{setting}: too small, the run needs {share:.2f} times that and ends {where}", True))
    return lines or [("no budget is set: judge.max_requests, judge.max_tokens or judge.max_cost would bound it", False)]


def notes(config: Config, found: Estimate) -> list[str]:
    """What the numbers rest on."""
    side = found.sample.image_size[0]
    sent = f", images of about {side} × {side} pixels at 28 × 28 a token" if config.judge.send_image else ""
    lines = [
        f"rows: {found.sample.source}{sent}; text at 4 characters a token",
        "the run: completions as long as gold rationales; at most: rollout.max_new_tokens in reward.max_steps each",
        f"{RETRY_SHARE:.0%} of requests are taken to be made again; rulings that judge.cache knows cost nothing",
        "repeats: vendors may cache beginnings from some length on only, of 1,024 tokens, say; vLLM caches all",
    ]
    if config.judge.provider.reasoning_effort is not None:
        lines.append(f"thoughts of a reasoning model (effort {config.judge.provider.reasoning_effort}) are a guess")
    if found.step_call is not None and only_measures(config):
        lines.append("rulings on steps decide about no advantage here and only measure: judge=none would cost nothing")
    return lines


def _million(number: float) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e5 else f"{number:,.0f}"


def _cost(size: Size, config: Config, *, cached: bool) -> str:
    cost = money(size, config.judge, cached=cached)
    if cost is None:
        assert config.judge.kind in FREE
        return "none"
    return f"{cost:,.2f}" if cost >= 0.1 else f"{cost:.2g}"
