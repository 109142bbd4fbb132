"""A training run while its parts are killed: `python -m tests.integration.chaos_run --seeds 0-9 --steps 30`.

Each seed runs in a process of its own: a Ray cluster of several nodes on this machine, the training command, and a
killer that follows `metrics.jsonl`. A seed's plan is in `chaos_plan`, what must hold afterwards in `chaos_record`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mrpo.faults import read_faults
from tests.integration.chaos_cluster import (
    ChaosCluster,
    chaos_cluster,
    descendants,
    left_after,
    left_in_shared_memory,
    shapes,
    shared_memory,
    working_processes,
)
from tests.integration.chaos_plan import GAP, Kill, Victim, plan_kills
from tests.integration.chaos_record import highest_step, problems_of
from tests.integration.chaos_recovery import Killed, judge_recoveries, note_progress, open_faults
from tests.locations import REPOSITORY

logger = logging.getLogger("chaos")

NODE_BACK_S = 10.0  # from a node's end to the next of its kind
WATCH_S = 0.1
HUNG_S = 300.0  # without a new step
LEAVE_S = 20.0  # for processes to end
TINY = (
    "data.num_train=24",
    "data.num_test=4",
    "model.warm_start.num_scans=64",
    "model.warm_start.true_steps=40",
    "model.warm_start.faulty_steps=2",
    "rollout.prompts_per_step=4",
    "rollout.group_size=2",
    "rollout.max_new_tokens=64",
    "rollout.max_num_seqs=2",  # completions end one by one, and batches change where requests move to another engine
    "rollout.num_engines=2",
    "learner.lr=2e-5",  # the policy goes on writing steps to be judged
    "judge.num_actors=2",
    "judge.cache.enabled=false",  # every ruling is asked for
    "judge.oracle.latency_s=1.5",  # a step takes seconds
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=2",
    "eval.before=false",
    "eval.after=false",
    "cluster.min_free_memory_gib=1",
)
ON_NODES = ("rollout.resources={engine:1}", "judge.resources={judge:1}")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one run."""

    seed: int
    num_steps: int
    exit_code: int | None = None
    wall_s: float = 0.0
    kills: list[Killed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    folder: str = ""


def main(arguments: Sequence[str]) -> int:
    """Run one seed (`--seed`), or several after each other (`--seeds`), and print what came of them."""
    options = read_options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.seed is not None:
        outcome = run_seed(options)
        for problem in outcome.problems:
            logger.error("PROBLEM: %s", problem)
        (options.out / f"seed_{options.seed}.json").write_text(json.dumps(asdict(outcome), indent=2) + "\n")
        return 1 if outcome.problems else 0
    if options.reference is None:
        options.reference = undisturbed_run(options)
    outcomes = [run_in_process(options, seed) for seed in options.seeds]
    sys.stdout.write(table(outcomes) + "\n")
    return 1 if any(outcome["problems"] for outcome in outcomes) else 0


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=read_seeds, default=[0], help="of the kills: 0-9 or 0,3,7")
    parser.add_argument("--seed", type=int, help="one, in this process")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--victims", type=read_victims, default=list(Victim), help="kinds to kill, e.g. engine,node")
    parser.add_argument("--gap", type=read_seeds, default=list(GAP), help="fewest and most steps between two kills")
    parser.add_argument("--ranks", type=int, default=1, help="of the learner")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--reference", type=Path, help="folder of an undisturbed run; made where there is none")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on the limits of recovery")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds a run may take")
    parser.add_argument("--no-spare", action="store_true", help="no node that stands in for others")
    parser.add_argument("--override", action="append", default=[], help="a setting of the run")
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()  # the run works in the repository
    options.reference = options.reference.resolve() if options.reference else None
    return options


def read_seeds(text: str) -> list[int]:
    """`0-9` or `0,3,7`."""
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(item) for item in text.split(",")]


def read_victims(text: str) -> list[Victim]:
    """Names, separated by commas."""
    return [Victim(item) for item in text.split(",")]


def training(options: argparse.Namespace, runs: Path, *more: str) -> list[str]:
    """The command, on small settings."""
    return [
        sys.executable,
        "-m",
        "tests.integration.chaos_driver",
        f"cache_dir={options.out / 'cache'}",
        f"runs_dir={runs}",
        *TINY,
        f"num_steps={options.steps}",
        f"learner.num_ranks={options.ranks}",
        *more,
        *options.override,
    ]


def undisturbed_run(options: argparse.Namespace) -> Path:
    """The same training in peace, on a Ray of its own."""
    runs = options.out / "undisturbed"
    shutil.rmtree(runs, ignore_errors=True)
    with (options.out / "undisturbed.log").open("w") as log:
        done = subprocess.run(
            training(options, runs), cwd=REPOSITORY, stdout=log, stderr=log, timeout=options.timeout, check=False
        )
    assert done.returncode == 0, (options.out / "undisturbed.log").read_text()
    [folder] = runs.glob("*/*/")
    return folder


def run_in_process(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One seed in a process that ends with all it started."""
    command = [sys.executable, "-m", "tests.integration.chaos_run", f"--seed={seed}", f"--steps={options.steps}"]
    command += [f"--victims={','.join(options.victims)}", f"--ranks={options.ranks}", f"--out={options.out}"]
    command += [f"--patience={options.patience}", f"--timeout={options.timeout}", f"--reference={options.reference}"]
    command += [f"--gap={options.gap[0]},{options.gap[-1]}"]
    command += ["--no-spare"] if options.no_spare else []
    command += [f"--override={item}" for item in options.override]
    path = options.out / f"seed_{seed}.json"
    path.unlink(missing_ok=True)
    subprocess.run(command, cwd=REPOSITORY, timeout=options.timeout + 300, check=False)
    if not path.exists():
        return asdict(Outcome(seed=seed, num_steps=options.steps, problems=["the harness itself failed"]))
    outcome: dict[str, Any] = json.loads(path.read_text())
    return outcome


def run_seed(options: argparse.Namespace) -> Outcome:
    """One disturbed run from cluster to verdict, in this process."""
    outcome = Outcome(seed=options.seed, num_steps=options.steps)
    plan = plan_kills(options.seed, options.steps, options.victims, (options.gap[0], options.gap[-1]))
    runs = options.out / f"seed_{options.seed}"
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True)
    shm_before, started = shared_memory(), time.monotonic()
    with chaos_cluster(shapes(num_ranks=options.ranks, spare=not options.no_spare)) as cluster:
        command = training(options, runs, f"cluster.address={cluster.address}", *ON_NODES)
        with (runs / "driver.log").open("w") as log:
            driver = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
        try:
            outcome.problems += follow(driver, cluster, runs, plan, outcome.kills, options.timeout)
            outcome.exit_code = driver.wait(timeout=60)
        finally:
            driver.kill()
        outcome.problems += [f"still there after the run: {item}" for item in left_after(working_processes, LEAVE_S)]
    outcome.wall_s = time.monotonic() - started
    outcome.problems += [f"still there after the cluster: {item}" for item in left_after(descendants, LEAVE_S)]
    outcome.problems += left_in_shared_memory(shm_before, LEAVE_S)
    if outcome.exit_code != 0:
        tail = (runs / "driver.log").read_text()[-2000:]
        outcome.problems.append(f"exit code {outcome.exit_code}; the last it said: {tail}")
    folder = run_folder(runs)
    if folder is None:
        outcome.problems.append("there is no run folder")
        return outcome
    outcome.folder = str(folder)
    outcome.problems += problems_of(folder, reference=options.reference)
    ended_s = (folder / "state.json").stat().st_mtime
    outcome.problems += judge_recoveries(outcome.kills, read_faults(folder), ended_s=ended_s, patience=options.patience)
    return outcome


def run_folder(runs: Path) -> Path | None:
    """Of the run that is or was made there."""
    found = list(runs.glob("*/*/config.yaml"))
    return found[0].parent if found else None


def follow(
    driver: subprocess.Popen[bytes],
    cluster: ChaosCluster,
    runs: Path,
    plan: Sequence[Kill],
    kills: list[Killed],
    timeout_s: float,
) -> list[str]:
    """Kill what is due until the run ends; says what is wrong where it hangs."""
    due = list(plan)
    step, moved_s, ends_at = 0, time.monotonic(), time.monotonic() + timeout_s
    kill_at: float | None = None
    back: dict[str, float] = {}  # nodes to be started again: when
    while driver.poll() is None:
        now = time.monotonic()
        reached = max(step, highest_step(run_folder(runs)))
        if reached > step:
            step, moved_s = reached, now
            logger.info("step %d", step)
            note_progress(kills, step)
        if due and step >= due[0].step and kill_at is None:
            kill_at = now + due[0].delay_s
        if kill_at is not None and now >= kill_at:
            folder = run_folder(runs)
            assert folder is not None  # there are steps on record
            killed = cluster.kill(due[0], step, starting=open_faults(read_faults(folder)))
            if killed is not None:
                logger.info("killed %s: %s, with %s", killed.kill.victim, killed.name, killed.actors)
                kills.append(killed)
                due, kill_at = due[1:], None
                back |= {name: now + NODE_BACK_S for name in cluster.missing if name not in back}
        for name in [name for name, at in back.items() if now >= at]:
            cluster.add_node(name)
            del back[name]
        if now - moved_s > HUNG_S or now > ends_at:
            show_stacks(driver, runs)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            why = f"no new step for {HUNG_S:g} s" if now - moved_s > HUNG_S else f"not done after {timeout_s:g} s"
            return [f"hung at step {step}: {why}; stacks are in {runs / 'stacks.txt'}"]
        time.sleep(WATCH_S)
    note_progress(kills, highest_step(run_folder(runs)) + 1)
    return [f"{kill.victim} at step {kill.step} was due and not killed" for kill in due]


def show_stacks(driver: subprocess.Popen[bytes], runs: Path) -> None:
    """Of the driver and of everything that works for it."""
    driver.send_signal(signal.SIGUSR2)
    spy = Path(sys.executable).with_name("py-spy")
    with (runs / "stacks.txt").open("w") as file:
        for pid, line in working_processes().items():
            file.write(f"== {pid} {line}\n")
            file.flush()
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                subprocess.run([spy, "dump", "--pid", str(pid)], stdout=file, stderr=file, timeout=30, check=False)
    time.sleep(1.0)  # the driver's own go to its log


def table(outcomes: Sequence[dict[str, Any]]) -> str:
    """A row a seed: what was killed, the slowest recoveries, and what was wrong."""
    head = (
        "| seed | steps | kills | until whole again, slowest: engine | judge actor | learner | node | wall | problems |"
    )
    lines = [head, "|---" * 9 + "|"]
    for outcome in outcomes:
        worst = dict.fromkeys(Victim, 0.0)
        for killed in outcome["kills"]:
            times = [item for item in (killed["whole_step_s"], *killed["faults"].values()) if item is not None]
            victim = Victim(killed["kill"]["victim"])
            worst[victim] = max([worst[victim], *times])
        engine = max(worst[Victim.ENGINE], worst[Victim.ROLLOUT_ACTOR])
        seconds = (engine, worst[Victim.JUDGE_ACTOR], worst[Victim.LEARNER_RANK], worst[Victim.NODE])
        names = " ".join(f"{killed['step']}:{killed['kill']['victim']}" for killed in outcome["kills"])
        cells = [str(outcome["seed"]), str(outcome["num_steps"]), names]
        cells += [f"{item:.0f} s" if item else "–" for item in seconds]
        cells += [f"{outcome['wall_s']:.0f} s", str(len(outcome["problems"])) if outcome["problems"] else "none"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
