"""A learner that is lost at any call: the run goes on from its checkpoint, and its record is that of a whole run."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mrpo import run_folder
from mrpo.config import Config, plain
from mrpo.controller import StopRequested
from mrpo.errors import LearnerLostError, LearnerStuckError, NonFiniteError, ResourceError
from mrpo.faults import FAULTS_FILE, Fault, FaultKind, FaultLog, read_faults
from mrpo.rows import read_rows
from mrpo.run_folder import RunFolder
from mrpo.run_reading import list_checkpoints, list_rollouts, read_metrics
from tests.unit.test_controller import World, make_world, with_config

CONFIG = with_config(num_steps=6, checkpoint={"every_steps": 2, "keep_last": 2}, eval={"before": True, "after": True})
LOST = LearnerLostError("learner-1 died during step: killed", "learner-1")


def loses(method: str, *calls: int, error: Exception = LOST) -> Callable[[str], None]:
    """Raise at the n-th calls of a method, counted from 1."""
    seen = 0

    def on_call(name: str) -> None:
        nonlocal seen
        if name == method:
            seen += 1
            if seen in calls:
                raise error

    return on_call


def recorded_world(folder: Path, on_call: Callable[[str], None], config: Config = CONFIG) -> tuple[World, RunFolder]:
    """A world whose record is a real run folder."""
    run = RunFolder.create(folder, "test", plain(config))
    world = make_world(folder, config, recorder=run)
    world.learner.on_call = on_call
    faults = FaultLog(run.path / FAULTS_FILE)
    controller = world.controller
    controller.faults = controller.recovery.faults = controller.checkpoints.faults = controller.skipped.faults = faults
    return world, run


def record(run: RunFolder) -> tuple[list[int], dict[int, list[str]]]:
    """The steps of metrics.jsonl, and the completions of each."""
    rollouts = {step: [row.key for row in read_rows(path)] for step, path in list_rollouts(run.path).items()}
    return [int(row["step"] or 0) for row in read_metrics(run.path).rows], rollouts


def undisturbed(folder: Path) -> tuple[list[int], dict[int, list[str]]]:
    world, run = recorded_world(folder, lambda method: None)
    with run:
        world.run()
        return record(run)


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("step", (1,)),
        ("step", (4,)),
        ("step", (2, 5, 9)),
        ("publish", (1,)),
        ("publish", (4,)),
        ("score", (1,)),  # the parity gate
        ("score", (4,)),  # the probe
        ("snapshot", (1,)),
        ("snapshot", (3,)),
        ("write", (1,)),
        ("write", (2,)),
    ],
)
def test_the_record_is_that_of_an_undisturbed_run(method: str, calls: Sequence[int], tmp_path: Path) -> None:
    world, run = recorded_world(tmp_path / "lost", loses(method, *calls))
    with run:
        world.run()
        assert world.learner.restarts == len(calls)
        assert record(run) == undisturbed(tmp_path / "whole")
        assert record(run)[0] == [1, 2, 3, 4, 5, 6]
        assert world.learner.weights == 6, "no update is missing, none is made twice"
        assert [item.step for item in list_checkpoints(run.path)] == [4, 6]
        faults = read_faults(run.path)
        assert [(fault.kind, fault.who) for fault in faults] == [(FaultKind.LEARNER_LOST, "learner-1")] * len(calls)
        assert all(fault.recovery_s is not None for fault in faults)
        counted = sum(row.get("faults/learner_lost") or 0 for row in read_metrics(run.path).rows)
        assert 1 <= counted <= len(calls), "rows that are rewound take their counts with them"
        evaluations = [line for line in world.diary if line.startswith("judging t0") or line.startswith("ended t0")]
        assert len(evaluations) == 4, "what was evaluated before the loss is not evaluated again"


def test_where_the_run_goes_on_is_told_and_faults_without_a_line_of_their_own_are_on_record(tmp_path: Path) -> None:
    """The count of the first loss is in a line that is rewound; the last one has no step after it."""
    config = with_config(CONFIG, checkpoint={"asynchronous": False})
    world, run = recorded_world(tmp_path, lambda method: None, config)
    lose, told = loses("step", 4, 6), list[int]()
    world.controller.progress = told.append
    log = world.controller.faults

    def on_call(name: str) -> None:
        lose(name)
        if name == "save" and world.controller.step == 6:
            log.begin(FaultKind.ENGINE_LOST, "engine-0")

    world.learner.on_call = on_call
    with run:
        world.run()
        assert told == [0, 2, 2]
        assert [fault.kind for fault in read_faults(run.path)] == [
            FaultKind.LEARNER_LOST,
            FaultKind.LEARNER_LOST,
            FaultKind.ENGINE_LOST,
        ]
        rows = read_metrics(run.path).rows
        assert not any("faults/engine_lost" in row for row in rows)
        assert sum(row.get("faults/learner_lost") or 0 for row in rows) == 1


def test_a_loss_while_it_starts_again_counts_as_another(tmp_path: Path) -> None:
    on_step, on_load = loses("step", 4), loses("load", 1, error=LearnerStuckError("learner-0 is stuck", "learner-0"))

    def on_call(name: str) -> None:
        on_step(name)
        on_load(name)

    world, run = recorded_world(tmp_path, on_call)
    with run:
        world.run()
        assert world.learner.restarts == 2
        kinds = [fault.kind for fault in read_faults(run.path)]
        assert kinds == [FaultKind.LEARNER_LOST, FaultKind.LEARNER_STUCK]
        assert record(run)[0] == [1, 2, 3, 4, 5, 6]


def test_losses_without_a_new_step_end_the_run_and_save_nothing(tmp_path: Path) -> None:
    world, run = recorded_world(tmp_path, lambda method: None)

    def on_call(name: str) -> None:
        if name == "step" and world.controller.step == 3:
            raise LOST

    world.learner.on_call = on_call
    with run:
        with pytest.raises(LearnerLostError, match=r"learner-1 died .* 3 times \(watchdog\.max_restarts\).* step 3: "):
            world.run()
        assert world.learner.restarts == 3
        assert [item.step for item in list_checkpoints(run.path)] == [2], "what it holds is not the steps done"
        assert len(read_faults(run.path)) == 4


def test_losses_between_which_the_run_comes_further_do_not_end_it(tmp_path: Path) -> None:
    config = with_config(CONFIG, checkpoint={"every_steps": 1, "asynchronous": False})
    world, run = recorded_world(tmp_path, loses("step", 1, 3, 5, 7, 9, 11), config)
    with run:
        world.run()
        assert world.learner.restarts == 6
        assert record(run)[0] == [1, 2, 3, 4, 5, 6]


def test_no_place_for_the_learner_ends_the_run_and_saves_nothing(tmp_path: Path) -> None:
    lose, refuse = loses("step", 4), loses("restart", 1, error=ResourceError("no room"))

    def on_call(name: str) -> None:
        lose(name)
        refuse(name)

    world, run = recorded_world(tmp_path, on_call)
    with run:
        with pytest.raises(ResourceError, match="no room"):
            world.run()
        assert [item.step for item in list_checkpoints(run.path)] == [2]


def test_a_stop_while_it_starts_again_saves_nothing(tmp_path: Path) -> None:
    world, run = recorded_world(tmp_path, loses("step", 4))

    async def never() -> None:
        world.controller.stop.set()
        await asyncio.sleep(60.0)

    world.learner.restart = never  # type: ignore[method-assign]
    with run:
        with pytest.raises(StopRequested):
            world.run()
        assert [item.step for item in list_checkpoints(run.path)] == [2]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    config = with_config(CONFIG, checkpoint={"asynchronous": False})
    world, run = recorded_world(tmp_path, lambda method: None, config)
    lose = loses("step", 6)

    def on_call(name: str) -> None:
        if name == "step" and world.controller.step == 5 and not world.learner.restarts:
            (run.path / "checkpoints" / "step_4" / "weights.json").write_text("[]")
        lose(name)

    world.learner.on_call = on_call
    with run:
        world.run()
        assert record(run)[0] == [1, 2, 3, 4, 5, 6]
        assert world.learner.weights == 6
        assert {fault.kind for fault in read_faults(run.path)} == {FaultKind.LEARNER_LOST, FaultKind.CHECKPOINT_DAMAGED}


# A record that cannot be written


@pytest.mark.parametrize("part", ["completions", "metrics"])
def test_a_step_that_is_not_on_record_is_in_no_checkpoint_and_is_done_again(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails once, and the run ends by it; when it is saved the disk answers again."""
    world, run = recorded_world(tmp_path / "failed", lambda method: None)

    def at_step_5(name: str) -> None:
        if name == "publish" and world.controller.step == 5:
            fail_once(monkeypatch, run, part)

    world.learner.on_call = at_step_5
    with run:
        with pytest.raises(ResourceError, match="Input/output error; the run ends here, because its record would"):
            world.run()
        assert world.learner.weights == 5 and run.step == 4
        assert [item.step for item in list_checkpoints(run.path)] == [2, 4]
    with RunFolder.open(run.path) as again:
        found = again.latest_good_checkpoint(lambda bad, reason: None)
        assert found is not None and found.step == 4
        again.rewind(4)
        resumed = make_world(tmp_path / "failed", CONFIG, recorder=again, step=4)
        asyncio.run(resumed.learner.load(str(found.path)))
        resumed.run()
        assert resumed.learner.weights == 6
        assert record(again) == undisturbed(tmp_path / "whole")


def fail_once(monkeypatch: pytest.MonkeyPatch, run: RunFolder, part: str) -> None:
    """The next write of this part of the record meets a disk error."""
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    if part == "completions":

        def write(path: Path, rows: object) -> None:
            monkeypatch.undo()
            raise error

        monkeypatch.setattr(run_folder, "write_rows", write)
    else:
        line = run._metrics
        assert line is not None

        def flush() -> None:
            monkeypatch.undo()
            raise error

        monkeypatch.setattr(line, "flush", flush)


# Steps that are not finite


def nonfinite(run: RunFolder) -> list[str]:
    return sorted(path.name for path in (run.path / "nonfinite").glob("*"))


def test_a_step_that_is_not_finite_is_skipped_counted_and_kept(tmp_path: Path) -> None:
    error = NonFiniteError("the loss of q000@0#1 is nan")
    world, run = recorded_world(tmp_path, loses("step", 2, 4, error=error))
    with run:
        world.run()
        rows = read_metrics(run.path).rows
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6], "a skipped step counts as done"
        assert world.learner.weights == 4, "and leaves the weights as they are"
        assert [row["step"] for row in rows if row.get("faults/nonfinite_step")] == [2, 4]
        assert nonfinite(run) == ["step_00002.parquet", "step_00004.parquet"]
        kept = read_rows(run.path / "nonfinite" / "step_00002.parquet")
        assert [row.key for row in kept] == record(run)[1][2]
        faults = read_faults(run.path)
        assert [fault.who for fault in faults] == ["step 2", "step 4"]
        assert "the loss of q000@0#1 is nan" in faults[0].detail and "nonfinite/step_00002.parquet" in faults[0].detail
        assert all(fault.recovery_s is not None for fault in faults)


def test_two_steps_in_a_row_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    world, run = recorded_world(tmp_path, loses("step", 4, 5, error=NonFiniteError("the gradient is not finite")))
    with run:
        message = r"two steps in a row .*are those of step 3: step 5: the .*step_00004\.parquet and .*step_00005"
        with pytest.raises(NonFiniteError, match=message):
            world.run()
        assert nonfinite(run) == ["step_00004.parquet", "step_00005.parquet"]
        assert record(run)[0] == [1, 2, 3, 4]
        assert [item.step for item in list_checkpoints(run.path)] == [2, 4]
        unmended: list[Fault] = [fault for fault in read_faults(run.path) if fault.recovery_s is None]
        assert [fault.who for fault in unmended] == ["step 4", "step 5"]


def test_rewound_steps_that_were_skipped_are_skipped_again(tmp_path: Path) -> None:
    """A loss right after a skipped step: its second time is no second in a row."""
    world, run = recorded_world(tmp_path, lambda method: None)
    lose = loses("step", 4)

    def on_call(name: str) -> None:
        lose(name)
        if name == "step" and world.controller.step == 2:
            raise NonFiniteError("the gradient is not finite")

    world.learner.on_call = on_call
    with run:
        world.run()
        assert record(run)[0] == [1, 2, 3, 4, 5, 6]
        assert nonfinite(run) == ["step_00003.parquet"]


# Engines that share the learner's GPUs


def test_engines_make_room_before_every_start(tmp_path: Path) -> None:
    on_step, on_load = loses("step", 4), loses("load", 1)

    def on_call(name: str) -> None:
        world.diary.append(f"learner: {name}")
        on_step(name)
        on_load(name)

    world, run = recorded_world(tmp_path, on_call)
    with run:
        world.run()
    kept = ("learner: restart", "learner: load", "learner: publish", "engine sleeps", "engine wakes")
    diary = [line for line in world.diary if line in kept]
    first = diary.index("learner: restart") - 1
    again = ["engine sleeps", "learner: restart", "learner: load"]
    assert diary[first : first + 8] == [*again, *again, "engine wakes", "learner: publish"]


@pytest.mark.parametrize("lost", [True, False], ids=["in a recovery", "before a step"])
def test_a_stop_is_heard_while_engines_make_room(lost: bool, tmp_path: Path) -> None:
    """An engine that is starting may be waited for, longer than anyone who stops a run waits."""
    world, run = recorded_world(tmp_path, loses("step", 4) if lost else lambda method: None)
    sleep = world.rollout.sleep

    async def hangs_in_the_end() -> None:
        await sleep()
        if world.diary.count("engine sleeps") == 5:
            world.controller.stop.set()
            await asyncio.sleep(60.0)

    world.rollout.sleep = hangs_in_the_end  # type: ignore[method-assign]
    world.controller.recovery.make_room = hangs_in_the_end
    with run:
        with pytest.raises(StopRequested):
            world.run()
        last = 2 if lost else 4
        assert [item.step for item in list_checkpoints(run.path)][-1] == last, "what a lost learner holds is not saved"
