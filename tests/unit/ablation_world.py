"""A study without engines: a trainer that leaves real run folders, and ends as it is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mrpo.ablation.ledger import Record, VariantFolder
from mrpo.ablation.plan import Plan
from mrpo.ablation.results import ResultRow
from mrpo.ablation.study import Axis, Study
from mrpo.ablation.trainer import Outcome, VariantStatus
from mrpo.compose import compose_config
from mrpo.config import plain
from mrpo.eval.record import EvalRecord
from mrpo.run_folder import RunFolder
from mrpo.run_reading import RunStatus
from tests.unit.synthetic_run import make_record

NUM_STEPS = 4
WALL_S = 90.0
STUDY = Study(
    name="made_up",
    seeds=(0,),
    common=(f"num_steps={NUM_STEPS}",),
    axes=(
        Axis(name="base", overrides=("algorithm.base=1,2.718281828459045",)),
        Axis(name="schedule", overrides=("algorithm.schedule=exponential,linear",)),
    ),
)
SOUND = [True, True, True, True]
EARLY = [False, False, True, False]  # first failure point 0; two of the three steps after it are invalid
LATE = [True, True, True, False]  # first failure point 1; no step follows


def evaluation(num_correct: int, verdicts: Sequence[list[bool] | None]) -> list[EvalRecord]:
    """As many questions as verdicts; the first ones are answered right."""
    return [make_record(number, valid, correct=number < num_correct) for number, valid in enumerate(verdicts)]


BEFORE = evaluation(4, [EARLY] * 6 + [SOUND] * 2 + [None] * 2)
AFTER = evaluation(7, [EARLY] * 2 + [LATE] + [SOUND] * 5 + [None] * 2)


@dataclass
class FakeTrainer:
    """Writes a real run folder for each call and ends it as the call's number says; finished where nothing is said."""

    endings: dict[int, str] = field(default_factory=dict)  # by number of the call, see `_train`
    calls: list[list[str]] = field(default_factory=list)
    after: list[EvalRecord] = field(default_factory=lambda: AFTER)

    def train(self, overrides: Sequence[str], log: Path) -> Outcome:
        number = len(self.calls)
        self.calls.append(list(overrides))
        with log.open("a") as file:
            file.write(f"call {number}\n")
        ending = self.endings.get(number, "finished")
        if ending == "dies at once":
            return Outcome(status=VariantStatus.FAILED, error="exit code 1: no memory", wall_s=1.0)
        config = compose_config(overrides)
        run = (
            RunFolder.create(config.runs_dir, config.experiment, plain(config))
            if config.resume is None
            else RunFolder.open(config.resume)
        )
        with run:
            return self._train(run, ending)

    def _train(self, run: RunFolder, ending: str) -> Outcome:
        if run.state.step == 0:
            run.write_evaluation("before", BEFORE)
        steps = range(run.state.step + 1, NUM_STEPS + 1)
        for step in steps[: 2 if ending != "finished" else NUM_STEPS]:
            run.log_metrics(step, {"reward/mean": 0.5 * step})
        if ending == "killed before a checkpoint":
            raise KeyboardInterrupt
        with run.checkpoint(run.state.step) as folder:
            (folder / "weights").write_text("w")
        if ending == "killed":
            raise KeyboardInterrupt
        if ending == "interrupted":
            run.set_status(RunStatus.INTERRUPTED, "stopped by the user")
            return Outcome(status=VariantStatus.INTERRUPTED, error=None, wall_s=WALL_S)
        if ending == "failed":
            run.set_status(RunStatus.INTERRUPTED, "engine 0 died")
            return Outcome(status=VariantStatus.FAILED, error="engine 0 died", wall_s=WALL_S)
        run.write_evaluation("after", self.after)
        run.set_status(RunStatus.FINISHED)
        return Outcome(status=VariantStatus.FINISHED, error=None, wall_s=WALL_S)


@dataclass
class FakeWatcher:
    """Keeps what it is told."""

    num_finished: list[int] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    endings: list[tuple[int, VariantStatus, int]] = field(default_factory=list)  # number, status, rows

    def begin(self, plan: Plan, num_finished: int) -> None:
        self.num_finished.append(num_finished)

    @contextmanager
    def training(self, number: int, folder: VariantFolder) -> Iterator[None]:
        self.trained.append(folder.variant.label)
        yield

    def ended(self, number: int, record: Record, rows: Sequence[ResultRow]) -> None:
        self.endings.append((number, record.status, len(rows)))
