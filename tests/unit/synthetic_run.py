"""A made-up run on disk, of the real types and scored by the real rules: shared by the tests of what people look at."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFilter

from mrpo.config import Config, plain
from mrpo.eval.record import EvalRecord
from mrpo.metrics import step_metrics
from mrpo.run_folder import RunFolder
from mrpo.scoring import ScoredTrace, Trace, score_group_batch
from mrpo.steps import extract_answer, split_steps, think_token_counts, token_spans
from mrpo.types import (
    Completion,
    Example,
    FailureReason,
    FinishReason,
    JudgeFailure,
    Judgement,
    LearnStats,
    Verdicts,
)

START_S = 1_760_000_000.0
GROUP_SIZE = 4
TRUTHS = ["This is a CT scan.", "It shows the liver.", "A lesion lies in the left half.", "It is in the upper part."]
FAULTS = [
    "This is an MRI scan.",
    "It shows the kidney.",
    "A lesion lies in the right half.",
    "It is in the lower part.",
]


def config_tree(num_steps: int = 40) -> dict[str, Any]:
    """The defaults, as a run writes them down."""
    tree: dict[str, Any] = plain(replace(Config(), num_steps=num_steps))
    return tree


def make_example(number: int, image: str = "", *, rationale: str | None = " ".join(TRUTHS)) -> Example:
    """Question `number`; its image file is named, not made."""
    return Example(
        id=f"q{number:03}",
        image=image or f"/nowhere/{number}.png",
        question="On which side is the lesion, and how many are there?",
        answer="upper left, 2",
        rationale=rationale,
        dataset="phantom",
        split="test",
        license="Apache-2.0",
    )


def make_completion(example: Example, steps: list[str], answer: str | None, **changes: Any) -> Completion:
    """A completion of whole-word tokens with the given reasoning."""
    text = f"<think>{' '.join(steps)}</think>" + ("" if answer is None else f"<answer>{answer}</answer>")
    offsets = [match.span() for match in re.finditer(r"<[^>]+>|[^\s<]+\s*|\s+", text)]
    found = split_steps(text)
    think_tokens, step_tokens = think_token_counts(text, found, offsets, "think")
    fields: dict[str, Any] = {
        "prompt_id": example.id,
        "sample_index": 0,
        "prompt_token_ids": list(range(20)),
        "completion_token_ids": list(range(len(offsets))),
        "rollout_logprobs": [-0.5] * len(offsets),
        "text": text,
        "steps": found,
        "spans": token_spans(found, offsets),
        "answer": extract_answer(text),
        "think_tokens": think_tokens,
        "step_tokens": step_tokens,
        "finish_reason": FinishReason.STOP if answer is not None else FinishReason.TRUNCATED,
        "policy_version": 0,
        "started_s": START_S,
        "ended_s": START_S + 2.0,
    }
    return Completion(**{**fields, **changes})


def make_judgement(completion: Completion, outcome: list[bool] | FailureReason, **changes: Any) -> Judgement:
    """A ruling (as both alignment and contribution), or a failure."""
    ruling = (
        JudgeFailure(reason=outcome, detail="made up")
        if isinstance(outcome, FailureReason)
        else Verdicts(alignment=outcome, contribution=outcome)
    )
    fields: dict[str, Any] = {
        "key": completion.key,
        "outcome": ruling,
        "started_s": completion.ended_s,
        "sent_s": completion.ended_s + 0.125,
        "ended_s": completion.ended_s + 0.5,
        "attempts": 1,
    }
    return Judgement(**{**fields, **changes})


def make_record(
    number: int, valid: list[bool] | FailureReason | None, *, correct: bool, image: str = "", **changes: Any
) -> EvalRecord:
    """An evaluated question with four or as many steps as verdicts."""
    example = make_example(number, image)
    rulings = valid if isinstance(valid, list) else [True] * 4
    steps = [(TRUTHS if ruling else FAULTS)[index % 4] for index, ruling in enumerate(rulings)]
    completion = make_completion(example, steps, "upper left, 2" if correct else "lower right, 2", **changes)
    return EvalRecord(
        example=example,
        completion=completion,
        judgement=None if valid is None else make_judgement(completion, valid),
        correct=correct,
        valid=valid if isinstance(valid, list) else None,
    )


def draw_images(folder: Path, count: int = 6) -> list[str]:
    """Small grey scans with a bright spot or two."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        rng = random.Random(number)
        image = Image.new("L", (84, 84), 12)
        draw = ImageDraw.Draw(image)
        draw.ellipse((10, 14, 74, 72), fill=90 + 10 * number, outline=170)
        for _ in range(2):
            x, y = rng.randint(22, 60), rng.randint(24, 60)
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=235)
        path = folder / f"scan_{number}.png"
        image.filter(ImageFilter.GaussianBlur(0.8)).save(path)
        paths.append(str(path))
    return paths


def draw_verdicts(rng: random.Random, soundness: float) -> list[bool]:
    """Four verdicts; once a step is wrong the later ones mostly are."""
    valid: list[bool] = []
    for _ in range(4):
        chance = soundness if all(valid) else 0.35
        valid.append(rng.random() < chance)
    return valid


def training_traces(step: int, num_steps: int, images: list[str], *, judged: bool = True) -> list[ScoredTrace]:
    """Two groups of four, the reasoning sounder the later the step; now and then the judge fails."""
    rng = random.Random(1000 + step)
    config = Config()
    traces = []
    for group in range(2):
        number = 2 * step + group
        for sample in range(GROUP_SIZE):
            valid = draw_verdicts(rng, 0.6 + 0.35 * step / num_steps)
            outcome = FailureReason.TIMEOUT if rng.random() < 0.03 else valid
            record = make_record(
                number,
                outcome if isinstance(outcome, FailureReason) else valid,
                correct=all(valid) or rng.random() < 0.15,
                image=images[number % len(images)],
                sample_index=sample,
                policy_version=step - 1,
                started_s=START_S + 10 * step,
                ended_s=START_S + 10 * step + 2 + sample * 0.4,
            )
            judgement = record.judgement if judged else None
            right = float(record.completion.answer == record.example.answer)
            traces.append(
                Trace(example=record.example, completion=record.completion, judgement=judgement, answer_reward=right)
            )
    return score_group_batch(
        traces,
        group_size=GROUP_SIZE,
        algorithm=config.algorithm,
        reward=config.reward,
        on_failure=config.judge.on_failure,
    ).traces


def evaluation_records(num: int, soundness: float, images: list[str], *, judged: bool = True) -> list[EvalRecord]:
    """An evaluation of `num` questions; the same numbers are the same questions."""
    rng = random.Random(7)
    records = []
    for number in range(num):
        valid = draw_verdicts(rng, soundness)
        outcome: list[bool] | FailureReason | None = valid if judged else None
        if judged and rng.random() < 0.01:
            outcome = FailureReason.BAD_JSON
        correct = all(valid) or rng.random() < 0.1
        records.append(make_record(number, outcome, correct=correct, image=images[number % len(images)]))
    return records


def make_run(
    runs_dir: Path,
    *,
    num_steps: int = 40,
    steps_done: int = 40,
    num_questions: int = 200,
    evaluations: tuple[str, ...] = ("before", "step_20", "after"),
    judged: bool = True,
) -> RunFolder:
    """A run folder with metrics, rollouts and evaluations, still open and marked as running."""
    images = draw_images(runs_dir / "images")
    run = RunFolder.create(runs_dir, "synthetic", config_tree(num_steps))
    soundness = {"before": 0.62, "step_20": 0.8, "after": 0.92}
    for step in range(1, steps_done + 1):
        traces = training_traces(step, num_steps, images, judged=judged)
        share = step / num_steps
        stats = LearnStats(
            loss=0.1 - 0.05 * share,
            kl=0.04 * share,
            clip_share=0.002 + 0.001 * (step % 3),
            entropy=0.9 - 0.4 * share,
            grad_norm=1.2 + 0.3 * ((step * 7) % 5 - 2) / 2,
            lr=5e-4 * (1 - share),
            num_tokens=300,
            num_micro_batches=2,
            seconds=1.4 + 0.1 * (step % 4),
        )
        times = {"started_s": START_S + 10 * step, "sync_s": 0.3, "step_s": 6.2}
        run.log_metrics(step, step_metrics(traces, stats, threshold=0.6, policy_version=step - 1, **times))
        run.write_rollouts(step, traces)
    for name in evaluations:
        run.write_evaluation(name, evaluation_records(num_questions, soundness[name], images, judged=judged))
    return run
