"""The order of a study: what is trained, resumed, left alone, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mrpo.ablation import driver
from mrpo.ablation.__main__ import main
from mrpo.ablation.console import StudyConsole
from mrpo.ablation.driver import StudyOutcome, run_study, study_folder
from mrpo.ablation.ledger import VariantFolder, quoted
from mrpo.ablation.plan import Plan, make_plan
from mrpo.ablation.trainer import ProcessTrainer, VariantStatus
from mrpo.compose import compose_config
from mrpo.errors import DataError, ResourceError
from mrpo.run_lock import RunLock
from mrpo.run_reading import list_checkpoints, read_config, read_metrics, read_state
from tests.unit.ablation_world import NUM_STEPS, STUDY, WALL_S, FakeTrainer, FakeWatcher

LABELS = [
    "base: algorithm.base=1 seed=0",
    "base: algorithm.base=2.718281828459045 seed=0",
    "schedule: algorithm.schedule=linear seed=0",
]


@pytest.fixture(autouse=True)
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time here, and has tests of its own."""
    monkeypatch.setattr(driver, "write_plot", lambda folder, rows: None)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Three runs for four rows."""
    return make_plan(STUDY)


def run(plan: Plan, runs_dir: Path, trainer: FakeTrainer) -> tuple[StudyOutcome, FakeWatcher]:
    watcher = FakeWatcher()
    return run_study(plan, study_folder(plan, runs_dir), trainer, watcher), watcher


def statuses(outcome: StudyOutcome) -> list[str]:
    return [row.status for row in outcome.rows]


def test_every_variant_is_trained_once_in_a_folder_of_its_own(plan: Plan, tmp_path: Path) -> None:
    trainer = FakeTrainer()
    outcome, watcher = run(plan, tmp_path, trainer)
    assert watcher.trained == LABELS
    assert watcher.num_finished == [0]
    # the run of the default is in the rows of both axes
    assert watcher.endings == [(0, "finished", 1), (1, "finished", 2), (2, "finished", 1)]
    assert statuses(outcome) == ["finished"] * 4
    assert (outcome.failed, outcome.is_interrupted) == ([], False)
    for variant, call in zip(plan.variants, trainer.calls, strict=True):
        folder = VariantFolder.locate(tmp_path / "ablation" / "made_up", variant)
        assert call == [*variant.overrides, f"runs_dir='{folder.path}'"]
        found = folder.run()
        assert found is not None and found.parent == folder.path / "phantom"
        assert read_config(found)["algorithm"]["base"] == variant.config.algorithm.base
        assert folder.log.read_text().startswith("call ")
    described = json.loads((tmp_path / "ablation" / "made_up" / "study.json").read_text())
    assert described["runs"] == {variant.key: list(variant.overrides) for variant in plan.variants}


def test_the_same_command_again_trains_nothing(plan: Plan, tmp_path: Path) -> None:
    first, _ = run(plan, tmp_path, FakeTrainer())
    again = FakeTrainer()
    second, watcher = run(plan, tmp_path, again)
    assert again.calls == []
    assert watcher.num_finished == [3]
    assert second.rows == first.rows


def test_a_failed_variant_is_recorded_and_the_study_goes_on(plan: Plan, tmp_path: Path) -> None:
    trainer = FakeTrainer(endings={0: "dies at once"})
    outcome, _ = run(plan, tmp_path, trainer)
    assert len(trainer.calls) == 3
    assert statuses(outcome) == ["failed", "finished", "finished", "finished"]
    (failed,) = outcome.failed
    assert (failed.label, failed.error, failed.attempts) == (LABELS[0], "exit code 1: no memory", 1)
    assert "exit code 1: no memory" in (tmp_path / "ablation" / "made_up" / "results.md").read_text()

    again = FakeTrainer()
    outcome, watcher = run(plan, tmp_path, again)
    assert watcher.trained == LABELS[:1]
    assert again.calls[0][-1].startswith("runs_dir=")  # nothing to resume from: from the start
    assert statuses(outcome) == ["finished"] * 4
    assert outcome.rows[0].error is None


def test_an_interrupted_variant_ends_the_study_and_is_resumed_from_its_checkpoint(plan: Plan, tmp_path: Path) -> None:
    outcome, watcher = run(plan, tmp_path, FakeTrainer(endings={1: "interrupted"}))
    assert outcome.is_interrupted
    assert watcher.trained == LABELS[:2]
    assert statuses(outcome) == ["finished", "interrupted", "interrupted", "pending"]

    again = FakeTrainer()
    outcome, watcher = run(plan, tmp_path, again)
    assert watcher.num_finished == [1]
    assert watcher.trained == LABELS[1:]
    folder = VariantFolder.locate(tmp_path / "ablation" / "made_up", plan.variants[1])
    found = folder.run()
    assert found is not None
    assert again.calls[0] == [f"resume='{found}'"]
    assert [row["step"] for row in read_metrics(found).rows] == list(range(1, NUM_STEPS + 1))
    assert [checkpoint.step for checkpoint in list_checkpoints(found)] == [2, NUM_STEPS]
    record = folder.record()
    assert (record.status, record.attempts, record.wall_s) == (VariantStatus.FINISHED, 2, 2 * WALL_S)
    assert folder.log.read_text() == "call 1\ncall 0\n"  # the second attempt's text stands behind the first's
    assert statuses(outcome) == ["finished"] * 4


@pytest.mark.parametrize(("ending", "is_resumed"), [("killed", True), ("killed before a checkpoint", False)])
def test_a_study_killed_with_its_training_goes_on(ending: str, is_resumed: bool, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, FakeTrainer(endings={0: ending}))
    folder = VariantFolder.locate(tmp_path / "ablation" / "made_up", plan.variants[0])
    assert folder.record().status == VariantStatus.RUNNING

    again = FakeTrainer()
    outcome, _ = run(plan, tmp_path, again)
    assert again.calls[0][-1].startswith("resume=" if is_resumed else "runs_dir=")
    assert statuses(outcome) == ["finished"] * 4
    assert len(list(folder.path.glob("phantom/*"))) == (1 if is_resumed else 2)  # nothing is thrown away
    newest = folder.run()
    assert newest is not None and read_state(newest).status == "finished"


def test_a_training_that_failed_with_a_checkpoint_is_resumed(plan: Plan, tmp_path: Path) -> None:
    outcome, _ = run(plan, tmp_path, FakeTrainer(endings={2: "failed"}))
    assert [record.error for record in outcome.failed] == ["engine 0 died"]
    again = FakeTrainer()
    outcome, _ = run(plan, tmp_path, again)
    assert [call[0].split("=")[0] for call in again.calls] == ["resume"]
    assert outcome.failed == []


def test_a_run_of_an_earlier_version_is_left_and_started_again(plan: Plan, tmp_path: Path) -> None:
    run(plan, tmp_path, FakeTrainer(endings={0: "interrupted"}))
    folder = VariantFolder.locate(tmp_path / "ablation" / "made_up", plan.variants[0])
    left = folder.run()
    assert left is not None
    state = json.loads((left / "state.json").read_text())
    (left / "state.json").write_text(json.dumps({name: value for name, value in state.items() if name != "format"}))
    again = FakeTrainer()
    outcome, _ = run(plan, tmp_path, again)
    assert again.calls[0][-1].startswith("runs_dir=")
    assert statuses(outcome) == ["finished"] * 4
    assert left.is_dir() and folder.run() != left


def test_a_run_that_finished_without_its_study_knowing_counts(plan: Plan, tmp_path: Path) -> None:
    run(plan, tmp_path, FakeTrainer())
    folder = VariantFolder.locate(tmp_path / "ablation" / "made_up", plan.variants[0])
    (folder.path / "variant.json").unlink()
    again = FakeTrainer()
    run(plan, tmp_path, again)
    assert again.calls == []


def test_a_study_that_grew_trains_only_what_is_new(plan: Plan, tmp_path: Path) -> None:
    run(plan, tmp_path, FakeTrainer())
    again = FakeTrainer()
    wider = make_plan(STUDY, ["seed=0,1"])
    outcome, watcher = run(wider, tmp_path, again)
    assert watcher.trained == [label.replace("seed=0", "seed=1") for label in LABELS]
    assert len(outcome.rows) == 8


def test_one_process_runs_a_study_and_one_a_variant(plan: Plan, tmp_path: Path) -> None:
    folder = study_folder(plan, tmp_path)
    folder.mkdir(parents=True)
    lock = RunLock.take(folder)
    with pytest.raises(ResourceError, match="is being written"):
        run(plan, tmp_path, FakeTrainer())
    lock.release()

    run(plan, tmp_path, FakeTrainer(endings={0: "interrupted"}))
    left = VariantFolder.locate(folder, plan.variants[0]).run()
    assert left is not None
    lock = RunLock.take(left)  # a training that outlived its study
    with pytest.raises(ResourceError, match="another process"):
        run(plan, tmp_path, FakeTrainer())
    lock.release()
    assert run(plan, tmp_path, FakeTrainer())[0].failed == []


def test_a_damaged_record_is_named(plan: Plan, tmp_path: Path) -> None:
    run(plan, tmp_path, FakeTrainer())
    folder = VariantFolder.locate(tmp_path / "ablation" / "made_up", plan.variants[0])
    (folder.path / "variant.json").write_text('{"status": "perhaps"}')
    with pytest.raises(DataError, match=r"variant\.json is damaged.*perhaps.*remove it"):
        run(plan, tmp_path, FakeTrainer())


@pytest.mark.parametrize("path", ["/a b/c,d=e", "it's", "/x/[1]/{2}", "\\'odd", "$HOME/(x)"])
def test_any_path_survives_hydras_grammar(path: str) -> None:
    assert compose_config([f"runs_dir={quoted(path)}"]).runs_dir == path


# The process around a training


def trainer_of(code: str) -> ProcessTrainer:
    return ProcessTrainer([sys.executable, "-c", code])


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("print('fine')", "finished", None),
        ("print('early'); raise SystemExit('error: no judge at x\\n')", "failed", "no judge at x"),
        ("print('half'); import sys; sys.exit(3)", "failed", "exit code 3: half"),
        ("import sys; sys.exit(1)", "failed", "exit code 1: nothing was said"),
        ("raise KeyError('lost')", "failed", "exit code 1: KeyError: 'lost'"),
        ("import os; print('so far', flush=True); os.kill(os.getpid(), 9)", "failed", "ended by SIGKILL: so far"),
        ("import sys; sys.exit(130)", "interrupted", None),
    ],
)
def test_how_a_training_ended_is_read_from_its_exit_code_and_its_text(
    code: str, status: str, error: str | None, tmp_path: Path
) -> None:
    log = tmp_path / "train.log"
    log.write_text("error: of an attempt before\n")
    with trainer_of(code) as trainer:
        outcome = trainer.train([], log)
    assert (outcome.status, outcome.error) == (status, error)
    assert log.read_text().startswith("error: of an attempt before\n")
    assert outcome.wall_s > 0


def test_ctrl_c_is_passed_on_once_each_time_and_nothing_starts_after_it(tmp_path: Path) -> None:
    """The training counts its signals and takes its time to end, as a real one does."""
    code = """
import signal, sys, time
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
print('ready', flush=True)
while not seen: time.sleep(0.01)
time.sleep(0.3)
print('signals', len(seen), flush=True)
sys.exit(130)
"""
    log = tmp_path / "train.log"

    def press() -> None:
        while "ready" not in (log.read_text() if log.exists() else ""):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with trainer_of(code) as trainer:
        thread = threading.Thread(target=press)
        thread.start()
        assert trainer.train([], log).status == VariantStatus.INTERRUPTED
        thread.join()
        assert log.read_text() == "ready\nsignals 1\n"
        assert trainer.train([], log).status == VariantStatus.INTERRUPTED
        assert log.read_text() == "ready\nsignals 1\n"
    assert signal.getsignal(signal.SIGINT) is before


# What is shown


def test_the_console_has_a_line_a_variant(plan: Plan, tmp_path: Path) -> None:
    file = io.StringIO()
    run_study(plan, study_folder(plan, tmp_path), FakeTrainer(endings={0: "failed"}), StudyConsole(file))
    assert file.getvalue().splitlines() == [
        "study made_up: 3 runs for 4 rows",
        f"[1/3] {LABELS[0]}: failed after 1 min 30 s: engine 0 died",
        f"[2/3] {LABELS[1]}: finished after 1 min 30 s, accuracy 40 % → 70 %, early failures 75 % → 25 %",
        f"[3/3] {LABELS[2]}: finished after 1 min 30 s, accuracy 40 % → 70 %, early failures 75 % → 25 %",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["expected one study=<name>"]),
        (["study=smok"], ["no such study: 'smok'", "did you mean 'smoke'"]),
        (["study=smoke", "learner.lr=-1"], ["variant base", "learner.lr=-1"]),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_starts_nothing(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, f"runs_dir={tmp_path}"]) == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    for word in words:
        assert word in shown
    assert list(tmp_path.iterdir()) == []
