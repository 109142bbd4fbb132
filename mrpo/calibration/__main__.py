"""`python -m mrpo.calibration check.labels=<file> [overrides]`: hold a judge against labelled steps.

The same command again goes on where it ended: rulings are kept, failed calls are made again. With `judge=none` the
labels are checked alone; with `check.template=<new file>` a blank sheet is written.
Exit codes: 0 done, 1 a fault, 2 something the user can mend (one line says what), 130 interrupted.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console as RichConsole

from mrpo.calibration.agreement import annotator_pairs
from mrpo.calibration.asking import Asked, ask, calls_of
from mrpo.calibration.attacks import AttackSummary, attack_success, attacks, requests_of
from mrpo.calibration.calls import call_summary
from mrpo.calibration.comparison import Comparison, compare_rulings
from mrpo.calibration.folder import CheckFolder, EarlierCheck, differences, read_earlier
from mrpo.calibration.job import Job, folder_of, identity_of, prepare, settings_shown
from mrpo.calibration.labels import Mark
from mrpo.calibration.measure import CheckResult, first_rulings, label_facts, measure, require_some_ruling
from mrpo.calibration.noise import NoisyJudge
from mrpo.calibration.rulings import RecordedJudge
from mrpo.calibration.tables import label_tables, result_tables
from mrpo.calibration.template import UNKNOWN_LICENSE, rows_of_sets, rows_of_source, write_template
from mrpo.choices import JudgeKind
from mrpo.command_line import INTERRUPTED, exit_code, quiet_libraries
from mrpo.compose import compose_config
from mrpo.config import Config
from mrpo.console import Console
from mrpo.judge_parts import check_judge_endpoint, judge_identity, start_judge
from mrpo.judge_prices import total_cost
from mrpo.judge_spending import SPENDING_FILE, SpendingLedger
from mrpo.protocols import JudgePool
from mrpo.ray_session import start_ray
from mrpo.report.judge_check import write_judge_check
from mrpo.run_folder import check_writable
from mrpo.stop_signals import cancel_on_signals


def main(arguments: Sequence[str]) -> int:
    """Run one check; returns the exit code."""
    return exit_code(lambda: _check(arguments))


def _check(arguments: Sequence[str]) -> int:
    config = compose_config(arguments)
    if config.check.template is not None:
        return _template(config, Path(config.check.template).expanduser())
    job = prepare(config)
    if job.config.judge.kind == JudgeKind.NONE:
        return _labels_alone(job)
    identity = identity_of(job)
    earlier = None
    if job.config.check.against is not None:
        earlier = read_earlier(Path(job.config.check.against).expanduser(), job.labels_sha256)
    check_writable(job.config.runs_dir)
    with Console(0) as console, CheckFolder.open(folder_of(job), identity) as folder:
        console.route_logs()
        console.note(_announcement(job, folder.path))
        ledger = SpendingLedger(folder.path / SPENDING_FILE)
        try:
            asked, attacked = asyncio.run(_ask(job, folder, console, ledger))
        except asyncio.CancelledError:
            console.note("stopped; the same command goes on from here")
            return INTERRUPTED
        result = _result(job, folder, asked, attacked, ledger, earlier, arguments)
        folder.write_result(asdict(result))
        page = write_judge_check(folder.path, result)
    _show(result, page)
    return 0


def _announcement(job: Job, folder: Path) -> str:
    check, num = job.config.check, len(job.completions)
    steps = sum(len(item.steps) for item in job.completions)
    parts = [f"{job.name}: {num} completions with {steps} labelled steps of {job.file}, asked {check.repeats} ×"]
    if check.orders:
        parts.append(f"{check.orders} × in another order")
    if check.attacks:
        parts.append(f"and {len(attacks())} attacks, each with and without")
    return f"{', '.join(parts)}; results in {folder}"


async def _ask(
    job: Job, folder: CheckFolder, console: Console, ledger: SpendingLedger
) -> tuple[list[Asked], AttackSummary | None]:
    """Make the calls that are not on file."""
    check, seed = job.config.check, job.config.seed
    calls = calls_of(job.completions, repeats=check.repeats, orders=check.orders, seed=seed)
    keys = [call.request.key for call in calls]
    if check.attacks:
        keys += [request.key for request in requests_of(attacks())]
    with_images = job.config.judge.send_image
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if done * 10 // total > told or done == total:
            told = done * 10 // total
            console.note(f"{done} of {total} calls")

    async with AsyncExitStack() as stack:
        is_known = all(folder.rulings.is_final(key) for key in keys)
        if not is_known:
            check_judge_endpoint(job.config)
            cancel_on_signals()
            start_ray(job.config, console, stack, after_ray=cancel_on_signals, learner=False, engines=False)
        async with AsyncExitStack() as first:
            judge = await _judge(None if is_known else job.config, folder, console, first, ledger)
            with console.stage("labelled completions"):
                asked = await ask(judge, calls, on_progress=progress)
            if not check.attacks:
                return asked, None
            if not with_images:
                with console.stage("attacks"):
                    return asked, await attack_success(judge)
        blind = replace(job.config, judge=replace(job.config.judge, send_image=False))  # attacks come without images
        judge = await _judge(None if is_known else blind, folder, console, stack, ledger)
        with console.stage("attacks"):
            return asked, await attack_success(judge)


async def _judge(
    config: Config | None, folder: CheckFolder, console: Console, stack: AsyncExitStack, ledger: SpendingLedger
) -> JudgePool:
    """The judge behind the file of its rulings; without a configuration the file must hold all there is."""
    if config is None:
        return RecordedJudge(None, folder.rulings)
    log_dir = folder.path / "logs"
    if config.judge.kind == JudgeKind.VLLM:
        log_dir.mkdir(exist_ok=True)
    pool: JudgePool | None = await start_judge(config, console, stack, ledger, fresh=True, log_dir=log_dir)
    assert pool is not None
    if config.judge.noise:
        pool = NoisyJudge(pool, probability=config.judge.noise, seed=config.seed)
    return RecordedJudge(pool, folder.rulings)


def _result(
    job: Job,
    folder: CheckFolder,
    asked: Sequence[Asked],
    attacked: AttackSummary | None,
    ledger: SpendingLedger,
    earlier: EarlierCheck | None,
    arguments: Sequence[str],
) -> CheckResult:
    config, judge = job.config, judge_identity(job.config.judge)
    assert judge is not None
    prices = config.judge.prices
    calls = call_summary([item.judgement for item in asked], cost=total_cost(ledger.spent, prices) if prices else None)
    measures = measure(job.completions, asked, seed=config.seed)
    require_some_ruling(job.name, measures, calls)
    notices = list(job.notices)
    if calls.num_failed:
        num_open = sum(not folder.rulings.is_final(item.call.request.key) for item in asked)
        again = f" The same command asks again for {num_open} of them alone." if num_open else ""
        notices.append(
            f"{calls.num_failed} of {calls.num_calls} calls about labelled completions failed. They are no verdicts "
            f"and in no measure of agreement.{again}"
        )
    known = folder.rulings.known
    attack_calls = [known[request.key] for request in requests_of(attacks())] if attacked else []
    return CheckResult(
        judge=job.name,
        rubric=judge.step_rubric,
        labels=str(job.file),
        labels_sha256=job.labels_sha256,
        seed=config.seed,
        repeats=config.check.repeats,
        orders=config.check.orders,
        command=shlex.join(["python", "-m", "mrpo.calibration", *arguments]),
        notices=notices,
        settings=settings_shown(job),
        measures=measures,
        calls=calls,
        attack_calls=call_summary(attack_calls, cost=None) if attacked else None,
        attacks=attacked,
        attack_success=attacked.success_share if attacked else None,
        comparison=_comparison(job, asked, earlier) if earlier else None,
    )


def _comparison(job: Job, asked: Sequence[Asked], earlier: EarlierCheck) -> Comparison:
    these = first_rulings(len(job.completions), asked)
    calls = calls_of(job.completions, repeats=1, orders=0, seed=job.config.seed)
    others = [
        Asked(call=call, judgement=earlier.rulings[call.request.key]).verdicts
        if call.request.key in earlier.rulings
        else None
        for call in calls
    ]
    found = [compare_rulings(job.completions, these, others, mark, seed=job.config.seed) for mark in Mark]
    return Comparison(
        name=job.name,
        other_name=earlier.name,
        num_completions=sum(a is not None and b is not None for a, b in zip(these, others, strict=True)),
        marks=[item for item in found if item is not None],
        differences=differences(earlier.identity, identity_of(job), shared=True),
    )


def _labels_alone(job: Job) -> int:
    """What the labels say of themselves."""
    screen = RichConsole(highlight=False)
    raters = annotator_pairs(job.completions, seed=job.config.seed)
    for table in label_tables(label_facts(job.completions), raters):
        screen.print(table)
    screen.print(f"{job.file}: every label can be read; set a judge to check it", soft_wrap=True, markup=False)
    return 0


def _template(config: Config, path: Path) -> int:
    """Write a blank sheet."""
    check = config.check
    if check.source is not None:
        source = Path(check.source).expanduser()
        rows = rows_of_source(source, num_completions=check.num_completions, seed=config.seed)
    elif config.benchmark.sets:
        rows = rows_of_sets(config.benchmark, num_completions=check.num_completions, seed=config.seed)
    else:
        rows = []
    sheet, instructions = write_template(path, rows)
    screen = RichConsole(highlight=False)
    steps = sum(len(row["steps"]) for row in rows)
    screen.print(f"{sheet}: {len(rows)} completions, {steps} steps to label", soft_wrap=True, markup=False)
    screen.print(f"{instructions}: what to tell the labellers", soft_wrap=True, markup=False)
    if any(row["license"] == UNKNOWN_LICENSE for row in rows):
        screen.print(
            "a run names no licenses: the sheet goes to no external judge until its column `license` is filled in",
            soft_wrap=True,
            markup=False,
        )
    if not rows:
        screen.print(
            "the sheet is empty; ARGS=check.source=<run or evaluation folder>, or SETS=<set> with "
            "ARGS=benchmark.generations=<file>, fills it with completions",
            soft_wrap=True,
            markup=False,
        )
    return 0


def _show(result: CheckResult, page: Path) -> None:
    """The numbers, to the screen."""
    screen = RichConsole(highlight=False)
    for table in result_tables(result):
        screen.print(table)
    screen.print(f"report: {page}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
