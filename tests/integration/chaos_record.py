"""What the record of a disturbed run must show: each check returns a line for everything that is wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mrpo.compose import resume_config
from mrpo.config import Config
from mrpo.data.load import load_dataset
from mrpo.faults import read_faults
from mrpo.rows import read_rows
from mrpo.run_reading import RunStatus, list_checkpoints, list_rollouts, read_metrics, read_state
from mrpo.sampling_order import prompts_of_step
from mrpo.types import Example

# What follows from seed and data alone; times, throughput, retries and faults may differ from run to run.
EXACT_METRICS = (
    "accuracy",
    "advantage/",
    "answer/",
    "cascade/",
    "completion/",
    "groups/",
    "policy/",
    "reward/",
    "steps/",
)
INEXACT_COLUMNS = ("judge_attempts", "judge_detail", "answer_judge_attempts", "answer_judge_detail")


def problems_of(folder: Path, *, reference: Path | None = None) -> list[str]:
    """Everything that is wrong with the record of a run that should have finished.

    Args:
        folder: of the run.
        reference: folder of an undisturbed run of the same settings, whose results must be the same to the bit.
    """
    state = read_state(folder)
    if state.status != RunStatus.FINISHED:
        return [f"the run is {state.status}, at step {state.step}"]
    config = resume_config(folder, [])
    examples = load_dataset(config).train
    found = [
        *wrong_steps(folder, config.num_steps),
        *wrong_prompts(folder, config, examples),
        *not_finite(folder),
        *missing_in_report(folder),
    ]
    return found if reference is None else [*found, *differences(folder, reference)]


def wrong_steps(folder: Path, num_steps: int) -> list[str]:
    """`metrics.jsonl` has a line for each step, once and in order, and there is a file of completions for each."""
    wanted = list(range(1, num_steps + 1))
    found = []
    logged = [row["step"] for row in read_metrics(folder).rows]
    if logged != wanted:
        found.append(f"metrics.jsonl has steps {logged}, expected 1 to {num_steps}, each once")
    written = list(list_rollouts(folder))
    if written != wanted:
        found.append(f"rollouts/ has steps {written}, expected 1 to {num_steps}")
    return found


def wrong_prompts(folder: Path, config: Config, examples: Sequence[Example]) -> list[str]:
    """Every step trained on the prompts that the data order gives it, each with its whole group, on current weights."""
    found = []
    for step, path in list_rollouts(folder).items():
        prompts = prompts_of_step(
            examples,
            step - 1,
            prompts_per_step=config.rollout.prompts_per_step,
            seed=config.seed,
            shuffle=config.data.shuffle,
        )
        rows = read_rows(path)
        wanted = Counter((prompt, index) for prompt in prompts for index in range(config.rollout.group_size))
        trained = Counter((row.prompt_id, row.sample_index) for row in rows)
        for (prompt, index), count in ((wanted - trained) + (trained - wanted)).items():
            what = "left out" if (prompt, index) in wanted - trained else "not due, or trained twice"
            found.append(f"step {step}: completion {index} of {prompt}: {what} ({count}×)")
        for row in rows:
            example = prompts.get(row.prompt_id)
            if example is not None and (row.image, row.question) != (example.image, example.question):
                found.append(f"step {step}: {row.key} was asked another question than {example.id}")
            if row.policy_version != step - 1:
                found.append(f"step {step}: {row.key} was sampled by policy {row.policy_version}")
    return found


def not_finite(folder: Path) -> list[str]:
    """Every number of every step is finite."""
    return [
        f"step {row['step']}: {name} is {value}"
        for row in read_metrics(folder).rows
        for name, value in row.items()
        if value is None or not math.isfinite(value)
    ]


def missing_in_report(folder: Path) -> list[str]:
    """The report names every fault's kind and bearer."""
    path = folder / "report.html"
    if not path.is_file():
        return ["there is no report"]
    text = path.read_text(encoding="utf-8")
    return [
        f"the report does not name {name}"
        for name in sorted({name for fault in read_faults(folder) for name in (fault.kind.value, fault.who)})
        if name not in text and name.replace("_", " ") not in text
    ]


def differences(folder: Path, reference: Path) -> list[str]:
    """Where losses, completions or final weights are not those of the reference run, to the bit."""
    found = []
    ours, theirs = read_metrics(folder).rows, read_metrics(reference).rows
    for mine, other in zip(ours, theirs, strict=False):
        names = sorted(name for name in mine.keys() | other.keys() if name.startswith(EXACT_METRICS))
        found += [
            f"step {mine['step']}: {name} is {mine.get(name)!r}, undisturbed {other.get(name)!r}"
            for name in names
            if mine.get(name) != other.get(name)
        ]
    written = list_rollouts(folder)
    for step, path in list_rollouts(reference).items():
        undisturbed, disturbed = _exact_rows(path), _exact_rows(written[step]) if step in written else {}
        found += [
            f"step {step}: {key}: {column} differs"
            for key, row in undisturbed.items()
            for column, value in row.items()
            if disturbed.get(key, {}).get(column) != value
        ]
    return found + _different_weights(folder, reference)


def _exact_rows(path: Path) -> dict[str, dict[str, Any]]:
    rows = {}
    for row in read_rows(path):
        columns = {name: value for name, value in asdict(row).items() if not name.endswith("_s")}
        rows[row.key] = {name: value for name, value in columns.items() if name not in INEXACT_COLUMNS}
    return rows


def _different_weights(folder: Path, reference: Path) -> list[str]:
    ours, theirs = list_checkpoints(folder)[-1], list_checkpoints(reference)[-1]
    if ours.step != theirs.step:
        return [f"the last checkpoint is of step {ours.step}, undisturbed {theirs.step}"]
    names = sorted(path.name for path in (theirs.path / "hf").glob("*.safetensors"))
    assert names, f"{theirs.path} holds no weights"
    return [
        f"final weights differ: {name}"
        for name in names
        if not (ours.path / "hf" / name).is_file()
        or (ours.path / "hf" / name).read_bytes() != (theirs.path / "hf" / name).read_bytes()
    ]


def highest_step(folder: Path | None) -> int:
    """The last step on record, also while the run is being written; 0 where there is none."""
    if folder is None or not (folder / "metrics.jsonl").is_file():
        return 0
    steps = [0]
    for line in (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]:
        steps.append(int(json.loads(line)["step"]))
    return max(steps)
