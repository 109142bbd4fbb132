"""`python -m mrpo.eval benchmark.model=<model> benchmark.sets=[vqa_rad,slake] [overrides]`: benchmarks of one model.

The same command again goes on where it ended: answered questions are kept, failed judgements are asked again.
Exit codes: 0 done, 1 a fault, 2 something the user can mend (one line says what), 130 interrupted.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table

from mrpo.checkpoint_source import local_checkpoint
from mrpo.choices import LEXICAL_NOTICE, AnswerKind, JudgeKind
from mrpo.collection import Collector
from mrpo.command_line import INTERRUPTED, exit_code, quiet_libraries
from mrpo.compose import compose_config, settings_tree
from mrpo.config import BenchmarkConfig, Config, EvalConfig
from mrpo.console import Console, share_text
from mrpo.errors import ConfigError, JudgeBudgetError
from mrpo.eval.evaluate import evaluate, unrated
from mrpo.eval.evaluation import FACTS_FILE, Evaluation, EvaluationFacts, read_evaluation, write_facts
from mrpo.eval.generations import GeneratedElsewhere, Generations, read_generations
from mrpo.eval.identity import evaluation_identity
from mrpo.eval.questions import QuestionSet, load_question_sets
from mrpo.eval.results import set_title, summarise_sets
from mrpo.eval.store import IDENTITY_FILE, EvaluationStore
from mrpo.eval.subject import Subject, context_length, digest_of, find_subject
from mrpo.eval.vlmevalkit import write_vlmevalkit_tsv
from mrpo.identity_folder import make_folder
from mrpo.judge_bill import bill_text
from mrpo.judge_canaries import CanaryJudge, canaries_text
from mrpo.judge_parts import check_judge_endpoint, judge_identity
from mrpo.judge_permission import require_judge_allowed
from mrpo.judge_spending import SPENDING_FILE, Spending, SpendingLedger, read_spending
from mrpo.judge_stop import larger
from mrpo.parts import answer_similarity, running_evaluation_parts
from mrpo.preflight import check_local_gpus, check_memory
from mrpo.report.benchmark import write_benchmark
from mrpo.rewards.scorer import Similarity
from mrpo.run_folder import check_writable
from mrpo.stop_signals import cancel_on_signals
from mrpo.trace_row import TraceRow
from mrpo.types import Example

USAGE = "make eval MODEL=<run folder, Hugging Face folder or hub id> SETS=vqa_rad,slake"
LONGEST_CONTEXT = 4096  # tokens; what an answer with one image needs, and no more memory than that


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that is known before anything expensive starts."""

    config: Config
    subject: Subject
    model_folder: Path | None  # None: outputs were generated elsewhere
    sets: list[QuestionSet]
    generations: Generations | None  # where there is no model

    @property
    def questions(self) -> list[Example]:
        """Of all sets, in order."""
        return [example for item in self.sets for example in item.examples]

    @property
    def name(self) -> str:
        """Of the model, in tables."""
        return self.config.benchmark.name or self.subject.name


def main(arguments: Sequence[str]) -> int:
    """Run one evaluation; returns the exit code."""
    return exit_code(lambda: _evaluate(arguments))


def _evaluate(arguments: Sequence[str]) -> int:
    _refuse_misplaced(arguments)
    if any(item.startswith("benchmark.compare=") for item in arguments):
        return _compare(compose_config(arguments))
    job = prepare_job(arguments)
    config = job.config
    check_writable(config.runs_dir)
    check_memory(config)
    check_local_gpus(config, learner=False)
    check_judge_endpoint(config)
    similarity = answer_similarity(config)
    identity = _identity(job)
    with Console(0) as console, EvaluationStore.open(_folder(job, identity), identity) as store:
        console.route_logs()
        console.note(f"{job.name}: {len(job.questions)} questions, results in {store.path}")
        if job.generations is not None and job.generations.unmatched:
            unmatched = job.generations.unmatched
            console.note(
                f"{len(unmatched)} rows of {job.subject.path} belong to no question, the first is row {unmatched[0]}"
            )
        for item in job.sets:
            console.note(f"{item.name}: {len(item.examples)} questions, open-ended rule {item.open_rule}")
        try:
            rows, canaries = asyncio.run(_measure(job, store, console, similarity))
        except asyncio.CancelledError:
            console.note("stopped; the same command goes on from here")
            return INTERRUPTED
        except JudgeBudgetError as error:
            raise JudgeBudgetError(
                f"{error}; what is measured is kept: the same command with {larger(error)} goes on from here"
            ) from None
        _conclude(job, store, rows, canaries, console, shlex.join(["python", "-m", "mrpo.eval", *arguments]))
    return 0


def prepare_job(arguments: Sequence[str]) -> Job:
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
    trained = [*subject.overrides, "algorithm.shaping=none"]  # nothing is shaped here, and it may need a judge
    config = compose_config(["judge=none", "experiment=phantom", *trained, *arguments])
    model_folder = None
    if model is not None:
        config = replace(config, model=replace(config.model, path=subject.path))
        model_folder = local_checkpoint(config.model)
        if not _is_set(arguments, "rollout.max_model_len"):
            positions = context_length(model_folder)
            # An engine has one position more than it is told, see rollout/engine.py.
            length = LONGEST_CONTEXT if positions is None else min(LONGEST_CONTEXT, positions - 1)
            config = replace(config, rollout=replace(config.rollout, max_model_len=length))
    if not _is_set(arguments, "reward.answer.kind", "reward.answer"):
        kind = AnswerKind.MIXED if config.judge.kind == JudgeKind.NONE else AnswerKind.JUDGE
        answer = replace(config.reward.answer, kind=kind)
        config = replace(config, reward=replace(config.reward, answer=answer))
    root = Path(config.benchmark.root).expanduser()
    sets = load_question_sets(root, config.benchmark.sets, num_questions=config.benchmark.num_questions)
    require_judge_allowed([example for item in sets for example in item.examples], config.judge)
    questions = {example.id: example for item in sets for example in item.examples}
    found = None if generations is None else read_generations(Path(str(generations)).expanduser(), questions)
    return Job(config=config, subject=subject, model_folder=model_folder, sets=sets, generations=found)


def _is_set(arguments: Sequence[str], *names: str) -> bool:
    """Whether an argument names one of these settings or sections, in full."""
    return any(_key(item) in names for item in arguments)


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+")


def _refuse_misplaced(arguments: Sequence[str]) -> None:
    """`eval.*` are settings of evaluations during training.

    Raises:
        ConfigError: a setting of `benchmark` is given as one of `eval`.
    """
    known = {field.name for field in fields(BenchmarkConfig)} - {field.name for field in fields(EvalConfig)}
    for item in arguments:
        section, _, name = _key(item).partition(".")
        if section == "eval" and name in known:
            raise ConfigError(f"unknown setting 'eval.{name}'; of make eval it is benchmark.{name}")


def _folder(job: Job, identity: dict[str, Any]) -> Path:
    config = job.config
    if config.benchmark.out is not None:
        return Path(config.benchmark.out).expanduser()
    name = f"{job.subject.name}-{digest_of([str(item) for item in identity.items()])}"
    return Path(config.runs_dir).expanduser() / "evaluation" / name


def _identity(job: Job) -> dict[str, Any]:
    found = job.generations
    return evaluation_identity(
        job.config,
        model_folder=job.model_folder,
        generations_sha256=found.sha256 if found is not None else None,
        sets=job.sets,
    )


async def _measure(
    job: Job, store: EvaluationStore, console: Console, similarity: Similarity | None
) -> tuple[list[TraceRow], str]:
    """A row a question, and what canaries came to, in words."""
    config, log_dir = job.config, store.path / "logs"
    log_dir.mkdir(exist_ok=True)
    cancel_on_signals()
    async with running_evaluation_parts(
        config,
        console,
        model_folder=job.model_folder,
        similarity=similarity,
        judge_ledger=SpendingLedger(store.path / SPENDING_FILE),
        log_dir=log_dir,
        after_ray=cancel_on_signals,
    ) as parts:
        outputs = job.generations.outputs if job.generations is not None else {}
        rollout = parts.rollout or GeneratedElsewhere(outputs, step_strategy=config.algorithm.step_strategy)
        await rollout.set_policy_version(0)
        collector = Collector(
            rollout=rollout, judge=parts.judge, answers=parts.answers, answer_kind=config.reward.answer.kind
        )
        with console.stage("questions"):
            rows = await evaluate(
                job.questions,
                collector,
                store,
                max_new_tokens=config.rollout.max_new_tokens,
                chunk_size=config.benchmark.chunk_size,
                threshold=config.algorithm.threshold,
                max_failure_share=config.judge.max_failure_share,
                on_progress=lambda done, total: console.note(f"{done} of {total} questions"),
            )
        if not isinstance(parts.judge, CanaryJudge):
            return rows, ""
        await parts.judge.finished()
        return rows, canaries_text(parts.judge.take_metrics())


def _conclude(
    job: Job, store: EvaluationStore, rows: Sequence[TraceRow], canaries: str, console: Console, command: str
) -> None:
    """Write what there is to read: rows, facts, page, tables, exports."""
    store.finish([example.id for example in job.questions])
    spent = read_spending(store.path / SPENDING_FILE)
    evaluation = Evaluation(facts=_facts(job, command, spent, canaries), rows=rows)
    write_facts(store.path, evaluation.facts)
    page, *_ = write_benchmark(store.path, [evaluation])
    if job.config.benchmark.vlmevalkit:
        for item in job.sets:
            write_vlmevalkit_tsv(store.path / f"{item.name}.tsv", item.examples)
    failed = unrated(rows)
    if failed:
        console.note(f"{len(failed)} questions lack a ruling; the same command asks again for them alone")
    if spent:
        console.note(f"the judge took {bill_text(spent, job.config.judge.prices)}")
    if canaries:
        console.note(f"canary steps ruled wrong by the judge: {canaries}")
    _show([evaluation], page)


def _show(evaluations: Sequence[Evaluation], page: Path) -> None:
    """The accuracies, to the screen."""
    table = Table(title="Answer accuracy, 95 % Wilson intervals", title_justify="left")
    for name in ("model", "set", "n", "correct", "judge errors", "accuracy"):
        table.add_column(name, justify="left" if name in ("model", "set") else "right")
    for evaluation in evaluations:
        results = summarise_sets(evaluation.rows, seed=evaluation.facts.seed)
        named = [*((set_title(name), result) for name, result in results.sets.items()), ("all (micro)", results.micro)]
        for title, item in named if len(results.sets) > 1 else named[:1]:
            counts = (item.num, item.num_correct, item.num_judge_errors)
            table.add_row(escape(evaluation.facts.model), escape(title), *map(str, counts), share_text(item.wilson))
    screen = RichConsole(highlight=False)
    screen.print(table)
    screen.print(f"report: {page}", soft_wrap=True, markup=False)


def _facts(job: Job, command: str, spent: Mapping[str, Spending], canaries: str) -> EvaluationFacts:
    config, judge = job.config, judge_identity(job.config.judge)
    by_judge = config.reward.answer.kind == AnswerKind.JUDGE
    return EvaluationFacts(
        model=job.name,
        seed=config.seed,
        judge=judge.model if judge else None,
        step_rubric=judge.step_rubric if judge else None,
        answer_rubric=judge.answer_rubric if judge and by_judge else None,
        open_rules={item.name: item.open_rule for item in job.sets},
        command=command,
        answer_kind=str(config.reward.answer.kind),
        threshold=config.algorithm.threshold,
        notices=(LEXICAL_NOTICE,) if config.judge.kind == JudgeKind.LEXICAL else (),
        settings={
            "answers": str(config.reward.answer.kind),
            "max new tokens": str(config.rollout.max_new_tokens),
            "checkpoint": str(job.model_folder or job.subject.path),
            **({"the judge took": bill_text(spent, config.judge.prices)} if spent else {}),
            **({"canary steps ruled wrong, in the command that ended it": canaries} if canaries else {}),
        },
    )


def _compare(config: Config) -> int:
    """Show finished evaluations side by side."""
    if config.benchmark.out is None:
        raise ConfigError("benchmark.compare needs benchmark.out=<folder for the page and tables>")
    evaluations = [read_evaluation(Path(folder).expanduser()) for folder in config.benchmark.compare]
    folder = Path(config.benchmark.out).expanduser()
    if (folder / IDENTITY_FILE).exists() or (folder / FACTS_FILE).exists():
        raise ConfigError(
            f"benchmark.out={folder} holds an evaluation of its own; name another folder for the comparison"
        )
    make_folder(folder, "benchmark.out")
    page, *_ = write_benchmark(folder, evaluations)
    _show(evaluations, page)
    return 0


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
