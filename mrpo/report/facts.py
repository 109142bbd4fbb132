"""The facts of a run in words: settings that matter, what it ran on, what was left out of learning, where time went."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mrpo.choices import LEXICAL_NOTICE, JudgeKind
from mrpo.report.charts import percent, significant
from mrpo.report.judge_spending import judge_spending
from mrpo.report.load import RunData
from mrpo.run_reading import RunStatus

NOTABLE = {  # label: dotted setting
    "policy": "model.path",
    "toy policy": "model.toy_family",
    "data": "data.kind",
    "training questions": "data.num_train",
    "held-out questions": "data.num_test",
    "advantage": "algorithm.advantage",
    "shaping": "algorithm.shaping",
    "penalty base": "algorithm.base",
    "penalty schedule": "algorithm.schedule",
    "right above": "algorithm.threshold",
    "truncated completions": "algorithm.truncated",
    "KL weight β": "algorithm.loss.beta",
    "clip ε": "algorithm.loss.epsilon_low",
    "answer reward": "reward.answer.kind",
    "judge": "judge.kind",
    "judge model": "judge.model",
    "when the judge fails": "judge.on_failure",
    "prompts a step": "rollout.prompts_per_step",
    "completions a prompt": "rollout.group_size",
    "temperature": "rollout.temperature",
    "new tokens at most": "rollout.max_new_tokens",
    "engines": "rollout.num_engines",
    "learner ranks": "learner.num_ranks",
    "ZeRO stage": "learner.zero_stage",
    "learning rate": "learner.lr",
    "device": "cluster.device",
    "seed": "seed",
}
_OF_REINFORCEMENT = {
    "advantage", "shaping", "penalty base", "penalty schedule", "truncated completions", "KL weight β", "clip ε",
    "when the judge fails", "prompts a step", "completions a prompt", "temperature",
}  # fmt: skip
NOTABLE_SUPERVISED = {label: path for label, path in NOTABLE.items() if label not in _OF_REINFORCEMENT} | {
    "epochs": "sft.num_epochs",
    "demonstrations a step": "sft.batch_size",
    "learning rate": "sft.lr",
    "warm-up share": "sft.warmup_share",
    "adapter rank (0: full)": "sft.lora.r",
    "adapter α": "sft.lora.alpha",
    "adapter dropout": "sft.lora.dropout",
}
TIME_PARTS = {  # metric time/<part>_s: label
    "rollout": "generation",
    "judge": "judging not hidden behind it",
    "learn": "learning",
    "sync": "weights to engines",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePart:
    """A part of the steps' wall time."""

    label: str
    style: str
    seconds: float
    share: float


def settings(config: Mapping[str, Any], *, supervised: bool = False) -> list[tuple[str, str]]:
    """The notable settings that the configuration has and that are not null; of a supervised run, those it uses."""
    found: list[tuple[str, str]] = []
    for label, path in (NOTABLE_SUPERVISED if supervised else NOTABLE).items():
        value: Any = config
        for part in path.split("."):
            value = value[part] if isinstance(value, Mapping) and part in value else None
        if value is not None and not (label == "toy policy" and any(name == "policy" for name, _ in found)):
            found.append((label, f"{value:.5g}" if isinstance(value, float) else str(value)))
    return found


def counts(run: RunData) -> list[tuple[str, str]]:
    """What happened to the completions of training, in numbers over the whole run."""
    completions, groups = run.total("rollout/completions"), run.total("groups/count")
    if not completions:
        return []
    asked = run.total("judge/asked") + run.total("judge/answers_asked")
    names = {name for row in run.metrics.rows for name in row if name.startswith("judge/failures/")}
    failures = {name.removeprefix("judge/failures/"): run.total(name) for name in sorted(names)}
    failed = sum(failures.values())
    reasons = f": {_listed(failures)}" if failed else ""
    unanswered = f"{_of(failed, asked)}{reasons}" if asked else "no judge was asked"
    return [
        ("completions sampled", f"{completions:,.0f}"),
        ("cut by the token limit", _of(run.total("completion/truncated"), completions)),
        ("judgements asked for", f"{asked:,.0f}"),
        ("judgements failed", unanswered),
        *_outage(run),
        *_canaries(run),
        *judge_spending(run),
        ("groups", f"{groups:,.0f}"),
        ("groups dropped (fewer than 2 completions left)", _of(run.total("groups/dropped"), groups)),
        ("groups of equal rewards (zero advantage)", _of(run.total("groups/constant"), groups)),
        ("answer-only groups, no gold rationale", _of(run.total("groups/answer_only_no_rationale"), groups)),
        ("answer-only groups, judge failed", _of(run.total("groups/answer_only_judge_failed"), groups)),
    ]


def _outage(run: RunData) -> list[tuple[str, str]]:
    """How long training had no judge, where that happened."""
    steps = [step for step, seconds in run.series("judge/outage_s") if seconds]
    if not steps:
        return []
    where = f"step {steps[0]:.0f}" if len(steps) == 1 else f"{len(steps)} steps from {steps[0]:.0f} on"
    return [("time without a judge", f"{duration(run.total('judge/outage_s'))}, in {where}")]


def _canaries(run: RunData) -> list[tuple[str, str]]:
    """How the judge ruled on steps with known verdicts, where any were sent along."""
    steps = dict(run.series("judge/canary_steps"))
    shares = dict(run.series("judge/canary_error_rate"))
    if not steps:
        return []
    wrong = sum(steps[step] * share for step, share in shares.items())
    if not wrong:
        return [("canary steps ruled wrong", f"none of {sum(steps.values()):,.0f}")]
    worst = max(shares, key=lambda step: shares[step])
    detail = f"most in step {worst:.0f}: {100 * shares[worst]:.0f} %"
    return [("canary steps ruled wrong", f"{_of(wrong, sum(steps.values()))}; {detail}")]


def notices(run: RunData) -> list[str]:
    """What a reader must know before the numbers: what is missing, and why."""
    of = f" of {run.config['num_steps']}"
    found = []
    if run.state.status == RunStatus.RUNNING:
        found.append(f"The run is going on, or was killed: {run.state.step}{of} steps are recorded.")
    elif run.state.status == RunStatus.INTERRUPTED:
        found.append(f"The run was interrupted after {run.state.step}{of} steps; resume=<its folder> goes on with it.")
    if not run.evaluations:
        found.append("There is no evaluation on held-out questions, so nothing here says what training brought.")
    elif "before" not in run.evaluations:
        found.append("There is no evaluation before training, so there is nothing to compare with.")
    elif "after" not in run.evaluations:
        found.append("There is no evaluation after training: only the numbers before it are shown.")
    if ("judge", JudgeKind.LEXICAL.value) in settings(run.config):
        found.append(f"{LEXICAL_NOTICE}.")
    rows = [row for rows in run.evaluations.values() for row in rows]
    if rows and not any(row.judge_attempts is not None for row in rows):
        found.append("No judge ruled on the evaluated steps: there are answers to compare, but no failure cascades.")
    reasons = Counter(row.judge_failure for row in rows if row.judge_failure is not None)
    if reasons:
        found.append(
            f"{reasons.total()} of {len(rows)} evaluated completions have no verdicts because the judge failed "
            f"({_listed(reasons)}); they count for accuracy only."
        )
    reasons = Counter(row.answer_judge_failure for row in rows if row.answer_judge_failure is not None)
    if reasons:
        found.append(
            f"{reasons.total()} of {len(rows)} evaluated answers have no ruling because the judge failed "
            f"({_listed(reasons)}); they stay in n and count as not correct."
        )
    if run.metrics.torn is not None:
        found.append("The last line of metrics.jsonl is half written and left out.")
    return found


def time_parts(run: RunData) -> list[TimePart]:
    """Wall time of all steps by part; what the parts leave is the controller's own work and waiting."""
    total = run.total("time/step_s")
    if not total:
        return []
    seconds = {part: run.total(f"time/{part}_s") for part in TIME_PARTS}
    seconds["other"] = max(0.0, total - sum(seconds.values()))
    labels = {**TIME_PARTS, "other": "other"}
    return [
        TimePart(label=labels[part], style=part, seconds=value, share=value / total) for part, value in seconds.items()
    ]


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 60:
        return f"{significant(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def date(seconds: float) -> str:
    """A day and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _of(part: float, whole: float) -> str:
    return f"{part:,.0f} of {whole:,.0f} ({percent(part / whole)})" if part and whole else f"{part:,.0f}"


def _listed(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number:.0f}" for name, number in sorted(counts.items()))
