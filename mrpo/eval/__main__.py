"""`python -m mrpo.eval benchmark.model=<model> benchmark.sets=[vqa_rad,slake] [overrides]`: benchmarks of one model.

The same command again goes on where it ended: answered questions are kept, failed judgements are asked again.
Exit codes: 0 done, 1 a fault, 2 something the user can mend (one line says what), 130 interrupted.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mrpo.checkpoint_source import local_checkpoint
from mrpo.choices import AnswerKind, JudgeKind
from mrpo.collection import Collector
from mrpo.command_line import INTERRUPTED, exit_code, quiet_libraries
from mrpo.compose import compose_config, settings_tree
from mrpo.config import Config, plain
from mrpo.console import Console
from mrpo.errors import ConfigError
from mrpo.eval.evaluate import evaluate
from mrpo.eval.generations import GeneratedElsewhere, read_generations
from mrpo.eval.questions import QuestionSet, load_question_sets
from mrpo.eval.store import EvaluationStore
from mrpo.eval.subject import Subject, context_length, digest_of, find_subject
from mrpo.judge_permission import require_judge_allowed
from mrpo.parts import answer_similarity, check_judge_endpoint, running_evaluation_parts
from mrpo.preflight import check_local_gpus, check_memory
from mrpo.rewards.scorer import Similarity
from mrpo.run_folder import check_writable
from mrpo.trace_row import TraceRow
from mrpo.types import Example

USAGE = "make eval MODEL=<run folder, Hugging Face folder or hub id> SETS=vqa_rad,slake"
MEASURED = ("algorithm.step_strategy", "algorithm.threshold", "reward.answer", "judge.kind", "judge.model")
LONGEST_CONTEXT = 4096  # tokens; what an answer with one image needs, and no more memory than that


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """All that is known before anything expensive starts."""

    config: Config
    subject: Subject
    model_folder: Path | None  # None: outputs were generated elsewhere
    sets: list[QuestionSet]
    outputs: dict[str, str] | None  # by question id, where there is no model

    @property
    def questions(self) -> list[Example]:
        """Of all sets, in order."""
        return [example for item in self.sets for example in item.examples]


def main(arguments: Sequence[str]) -> int:
    """Run one evaluation; returns the exit code."""
    return exit_code(lambda: _evaluate(arguments))


def _evaluate(arguments: Sequence[str]) -> int:
    benchmark = prepare_benchmark(arguments)
    config = benchmark.config
    check_writable(config.runs_dir)
    check_memory(config)
    check_local_gpus(config)
    check_judge_endpoint(config)
    similarity = answer_similarity(config)
    with Console(0) as console, EvaluationStore.open(_folder(benchmark), _identity(benchmark)) as store:
        console.route_logs()
        console.note(f"{benchmark.subject.name}: {len(benchmark.questions)} questions, results in {store.path}")
        for item in benchmark.sets:
            console.note(f"{item.name}: {len(item.examples)} questions, open-ended rule {item.open_rule}")
        try:
            rows = asyncio.run(_measure(benchmark, store, console, similarity))
        except asyncio.CancelledError:
            console.note("stopped; the same command goes on from here")
            return INTERRUPTED
        _conclude(benchmark, store, rows, console)
    return 0


def prepare_benchmark(arguments: Sequence[str]) -> Benchmark:
    """Settings, model and questions, all checked.

    Raises:
        ConfigError: nothing to evaluate, both a model and generations, unknown settings, or a set that is not prepared.
        DataError: damaged questions or generations.
    """
    named = settings_tree([item for item in arguments if item.startswith("benchmark.")]).get("benchmark", {})
    model, generations = named.get("model"), named.get("generations")
    if (model is None) == (generations is None):
        raise ConfigError(f"give either benchmark.model or benchmark.generations, as in: {USAGE}")
    if model is None:
        subject = Subject(name=Path(str(generations)).stem, path=str(generations), overrides=[])
    else:
        config = compose_config([item for item in arguments if item.startswith("benchmark.")])
        subject = find_subject(str(model), config.benchmark.checkpoint)
    config = compose_config(["judge=none", "experiment=phantom", *subject.overrides, *arguments])
    model_folder = None
    if model is not None:
        config = replace(config, model=replace(config.model, path=subject.path))
        model_folder = local_checkpoint(config.model)
        if not _is_set(arguments, "rollout.max_model_len"):
            positions = context_length(model_folder)
            # An engine has one position more than it is told, see rollout/engine.py.
            length = LONGEST_CONTEXT if positions is None else min(LONGEST_CONTEXT, positions - 1)
            config = replace(config, rollout=replace(config.rollout, max_model_len=length))
    if not _is_set(arguments, "reward.answer"):
        kind = AnswerKind.MIXED if config.judge.kind == JudgeKind.NONE else AnswerKind.JUDGE
        answer = replace(config.reward.answer, kind=kind)
        config = replace(config, reward=replace(config.reward, answer=answer))
    root = Path(config.benchmark.root).expanduser()
    sets = load_question_sets(root, config.benchmark.sets, num_questions=config.benchmark.num_questions)
    require_judge_allowed(config.benchmark.sets, config.judge)
    questions = {example.id: example for item in sets for example in item.examples}
    outputs = None if generations is None else read_generations(Path(str(generations)).expanduser(), questions)
    return Benchmark(config=config, subject=subject, model_folder=model_folder, sets=sets, outputs=outputs)


def _is_set(arguments: Sequence[str], name: str) -> bool:
    return any(item.lstrip("+").startswith(name) for item in arguments)


def _folder(benchmark: Benchmark) -> Path:
    config = benchmark.config
    if config.benchmark.out is not None:
        return Path(config.benchmark.out).expanduser()
    name = f"{benchmark.subject.name}-{digest_of([str(item) for item in _identity(benchmark).items()])}"
    return Path(config.runs_dir).expanduser() / "evaluation" / name


def _identity(benchmark: Benchmark) -> dict[str, Any]:
    """What makes two evaluations the same: the model, the questions, and how both are asked and judged."""
    config, tree = benchmark.config, plain(benchmark.config)
    model = benchmark.model_folder
    weights = [] if model is None else sorted(model.glob("*.safetensors"))
    return {
        "subject": benchmark.subject.name,
        "path": str(model or Path(benchmark.subject.path).expanduser().resolve()),
        "weights": [[file.name, file.stat().st_size] for file in weights],
        "seed": config.seed,
        "prompt": {"terse": config.model.terse_prompt, "max_pixels": config.model.max_pixels},
        "max_new_tokens": config.rollout.max_new_tokens,
        "settings": {name: _setting(tree, name) for name in MEASURED},
        "sets": [
            {
                "name": item.name,
                "open_rule": item.open_rule,
                "license": item.license,
                "num_questions": len(item.examples),
                "digest": digest_of([str({**asdict(example), "image": ""}) for example in item.examples]),
            }
            for item in benchmark.sets
        ],
    }


def _setting(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree[part]
    return tree


async def _measure(
    benchmark: Benchmark, store: EvaluationStore, console: Console, similarity: Similarity | None
) -> list[TraceRow]:
    config, log_dir = benchmark.config, store.path / "logs"
    log_dir.mkdir(exist_ok=True)
    _catch_signals()
    spent = sum((row.judge_attempts or 0) + (row.answer_judge_attempts or 0) for row in store.rows.values())
    async with running_evaluation_parts(
        config,
        console,
        model_folder=benchmark.model_folder,
        similarity=similarity,
        judge_requests_spent=spent,
        log_dir=log_dir,
        after_ray=_catch_signals,
    ) as parts:
        rollout = parts.rollout or GeneratedElsewhere(
            benchmark.outputs or {}, step_strategy=config.algorithm.step_strategy
        )
        await rollout.set_policy_version(0)
        collector = Collector(
            rollout=rollout, judge=parts.judge, answers=parts.answers, answer_kind=config.reward.answer.kind
        )
        with console.stage("questions"):
            return await evaluate(
                benchmark.questions,
                collector,
                store,
                max_new_tokens=config.rollout.max_new_tokens,
                chunk_size=config.benchmark.chunk_size,
                threshold=config.algorithm.threshold,
                on_progress=lambda done, total: console.note(f"{done} of {total} questions"),
            )


def _catch_signals() -> None:
    """A signal ends the evaluation in order; whole chunks are kept."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)


def _conclude(benchmark: Benchmark, store: EvaluationStore, rows: Sequence[TraceRow], console: Console) -> None:
    results = store.finish([example.id for example in benchmark.questions])
    correct = sum(row.correct for row in rows)
    console.note(f"{correct} of {len(rows)} correct; {results}")


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
