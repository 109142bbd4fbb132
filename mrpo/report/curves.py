"""Which measures the report draws over steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mrpo.eval.intervals import Interval
from mrpo.eval.summary import EvalSummary
from mrpo.report.charts import LinePlot, Mark, Series, line_plot, stacked_plot
from mrpo.report.facts import TIME_PARTS
from mrpo.report.load import RunData
from mrpo.run_reading import STEP_NAME

SINGLE = [  # title, metric, unit, is a share
    ("Valid steps", "steps/valid_share", "share of judged steps", True),
    ("Completion length", "completion/tokens", "tokens", False),
    ("KL to the reference", "policy/kl", "nats a token", False),
    ("Entropy", "policy/entropy", "nats a token", False),
    ("Gradient norm", "policy/grad_norm", "before clipping", False),
    ("Clipped tokens", "policy/clip_share", "share", True),
    ("Generation", "rollout/tokens_per_s", "tokens/s", False),
    ("Failed judgements", "judge/failure_share", "share of those asked for", True),
]
REWARDS = [  # metric, label, CSS class
    ("reward/mean", "sum", "a"),
    ("reward/answer", "answer", "b"),
    ("reward/process", "process", "c"),
    ("reward/step_count", "step count", "d"),
]


def draw_curves(run: RunData, summaries: Mapping[str, EvalSummary]) -> list[LinePlot]:
    """All plots that have data; evaluations stand among the curves of what they measure."""
    accuracy_marks = _marks(run, summaries, lambda summary: summary.accuracy)
    early_marks = _marks(run, summaries, lambda summary: summary.early_share)
    sampled = [Series(label="sampled", points=run.series("accuracy"), style="a")]
    early = [Series(label="sampled", points=run.series("cascade/early_share"), style="a")]
    rewards = [Series(label=label, points=run.series(metric), style=style) for metric, label, style in REWARDS]
    times = [Series(label=part, points=run.series(f"time/{part}_s"), style=part) for part in TIME_PARTS]
    losses = [
        Series(label="shown", points=run.series("sft/loss"), style="a"),
        Series(label="held out", points=[(float(item.step), item.loss) for item in run.held_out], style="b"),
    ]
    plots = [line_plot("Loss", losses, unit="nats a target token")]
    plots.append(line_plot("Accuracy", sampled, unit="share right", marks=accuracy_marks, is_share=True))
    plots.append(line_plot("Early failures", early, unit="share of judged", marks=early_marks, is_share=True))
    plots.append(line_plot("Reward", rewards, unit="mean a completion"))
    for title, metric, unit, is_share in SINGLE:
        series = [Series(label=title, points=run.series(metric), style="a")]
        plots.append(line_plot(title, series, unit=unit, is_share=is_share))
    plots.append(stacked_plot("Time of a step", times, unit="s"))
    return [plot for plot in plots if plot is not None] if run.metrics.rows else []


def _marks(
    run: RunData, summaries: Mapping[str, EvalSummary], measure: Callable[[EvalSummary], Interval | None]
) -> list[Mark]:
    """Evaluations at the steps after which they were made."""
    marks = []
    for name, summary in summaries.items():
        match = STEP_NAME.fullmatch(name)
        step = int(match[1]) if match else 0 if name == "before" else run.state.step
        found = measure(summary)
        if found is not None:
            label = name.replace("_", " ")
            marks.append(Mark(label=label, step=step, value=found.value, low=found.low, high=found.high))
    return marks
