"""The run folder: whole files, one line a step, and a way back after a crash."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mrpo.atomic import write_bytes
from mrpo.choices import BestMetric
from mrpo.errors import ConfigError, DataError, ResourceError
from mrpo.faults import FAULTS_FILE, FaultKind, FaultLog
from mrpo.manifest import write_manifest
from mrpo.resumable import resumed_run
from mrpo.rows import read_rows
from mrpo.run_folder import RunFolder, check_writable
from mrpo.run_lock import LOCK_FILE, RunLock
from mrpo.run_reading import (
    FORMAT,
    BestStep,
    RunStatus,
    list_checkpoints,
    list_evaluations,
    list_rollouts,
    read_config,
    read_evaluation,
    read_metrics,
    read_state,
)
from mrpo.types import FailureReason
from tests.unit.synthetic_run import config_tree, draw_images, evaluation_records, make_record, training_traces


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "demo", config_tree())


def reopen(run: RunFolder) -> RunFolder:
    """What the next process does; closing stands for the death of the one before."""
    run.close()
    return RunFolder.open(run.path)


def test_create_writes_the_whole_configuration_and_what_it_ran_on(run: RunFolder) -> None:
    assert read_config(run.path) == config_tree()
    assert read_state(run.path).status == RunStatus.RUNNING
    assert json.loads((run.path / "environment.json").read_text())["python"].startswith("3.")
    assert "run created" in (run.path / "events.log").read_text()


def test_two_runs_of_one_second_get_two_folders(tmp_path: Path) -> None:
    first, second, third = (RunFolder.create(tmp_path, "demo", {}) for _ in range(3))
    assert len({first.path, second.path, third.path}) == 3
    assert all(run.path.parent == tmp_path / "demo" for run in (first, second, third))


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_experiment_must_be_a_plain_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="experiment="):
        RunFolder.create(tmp_path, name, {})


def test_unwritable_place_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write to .*file/runs: Not a directory; set runs_dir") as caught:
        check_writable(tmp_path / "file" / "runs")
    assert "\n" not in str(caught.value)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, size, bad = tmp_path / "file", 1 << 20, []
    write_bytes(path, b"0" * size)
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            data = path.read_bytes()
            if len(data) != size or len(set(data)) != 1:
                bad.append(len(data))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        write_bytes(path, str(number % 10).encode() * size)
    done.set()
    reader.join()
    assert not bad
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_other(run: RunFolder) -> None:
    path = run.write_evaluation("before", [make_record(1, [True], correct=True)])
    with pytest.raises(AttributeError):
        run.write_evaluation("before", [None])  # type: ignore[list-item]
    assert len(read_rows(path)) == 1
    assert {item.name for item in path.parent.iterdir()} == {"before.parquet", "before.json"}


def test_metrics_are_on_disk_after_every_step(run: RunFolder) -> None:
    run.log_metrics(1, {"accuracy": 0.1 + 0.2})
    assert read_metrics(run.path).rows == [{"step": 1, "accuracy": 0.1 + 0.2}]
    run.log_metrics(2, {"accuracy": 0.5})
    assert [row["step"] for row in read_metrics(run.path).rows] == [1, 2]
    assert read_state(run.path).step == 2


def test_a_step_is_logged_once(run: RunFolder) -> None:
    run.log_metrics(1, {})
    with pytest.raises(AssertionError, match="step 1"):
        run.log_metrics(1, {})


def test_values_that_are_not_finite_become_null_and_an_event(run: RunFolder) -> None:
    run.log_metrics(1, {"policy/kl": float("nan"), "accuracy": 1.0})
    assert read_metrics(run.path).rows == [{"step": 1, "policy/kl": None, "accuracy": 1.0}]
    assert "not finite, written as null: policy/kl" in (run.path / "events.log").read_text()


def test_half_a_last_line_is_dropped_with_a_note(run: RunFolder) -> None:
    run.log_metrics(1, {"accuracy": 0.5})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "accur')
    found = read_metrics(run.path)
    assert [row["step"] for row in found.rows] == [1]
    assert found.torn == '{"step": 2, "accur'
    again = reopen(run)
    again.log_metrics(2, {"accuracy": 0.6})
    assert [row["step"] for row in read_metrics(run.path).rows] == [1, 2]
    assert "dropped a half-written last line" in (run.path / "events.log").read_text()


def test_a_damaged_line_in_the_middle_is_named(run: RunFolder) -> None:
    run.metrics_path.write_text('{"step": 1}\n{"step": oops}\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl line 2"):
        reopen(run)


def test_rewind_leaves_no_later_step(run: RunFolder, tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images")
    for step in (1, 2, 3):
        run.log_metrics(step, {"accuracy": step / 10})
        run.write_rollouts(step, training_traces(step, 3, images))
        with run.checkpoint(step):
            pass
    run.write_evaluation("before", evaluation_records(2, 0.5, images))
    run.write_evaluation("step_3", evaluation_records(2, 0.5, images))
    run.write_evaluation("after", evaluation_records(2, 0.5, images))
    again = reopen(run)
    again.rewind(1)
    assert [row["step"] for row in read_metrics(run.path).rows] == [1]
    assert list(list_rollouts(run.path)) == [1]
    assert list(list_evaluations(run.path)) == ["before"]
    latest = again.latest_checkpoint()
    assert latest is not None and latest.step == 1
    for step in (2, 3):
        again.log_metrics(step, {})
    assert [row["step"] for row in read_metrics(run.path).rows] == [1, 2, 3]


def test_checkpoint_appears_whole_or_not_at_all(run: RunFolder) -> None:
    with run.checkpoint(5) as folder:
        (folder / "hf").mkdir()
        (folder / "hf" / "model").write_text("weights")
        assert run.latest_checkpoint() is None
    latest = run.latest_checkpoint()
    assert latest is not None and latest.step == 5
    assert (latest.path / "hf" / "model").read_text() == "weights"
    with pytest.raises(RuntimeError, match="disk"), run.checkpoint(6) as folder:
        (folder / "half").write_text("")
        raise RuntimeError("disk")
    assert [item.name for item in (run.path / "checkpoints").iterdir()] == ["step_5"]


def test_a_checkpoint_of_the_same_step_replaces_the_old_one(run: RunFolder) -> None:
    for content in ("old", "new"):
        with run.checkpoint(5) as folder:
            (folder / "file").write_text(content)
    latest = run.latest_checkpoint()
    assert latest is not None and (latest.path / "file").read_text() == "new"
    assert [item.name for item in (run.path / "checkpoints").iterdir()] == ["step_5"]


def test_only_the_newest_checkpoints_are_kept(run: RunFolder) -> None:
    for step in (1, 2, 9, 10, 11):  # by number, not by name
        with run.checkpoint(step, keep_last=2):
            pass
    assert sorted(item.name for item in (run.path / "checkpoints").iterdir()) == ["step_10", "step_11"]


def test_the_best_checkpoint_is_kept_and_remembered(run: RunFolder) -> None:
    best = BestStep(step=1, metric=BestMetric.ACCURACY, value=0.75)
    for step in (1, 2, 3):
        run.log_metrics(step, {})
        with run.checkpoint(step, keep_last=1):
            pass
        if step == 1:
            run.mark_best(best)
    assert sorted(item.name for item in (run.path / "checkpoints").iterdir()) == ["step_1", "step_3"]
    again = reopen(run)
    assert again.best == best
    again.rewind(1)
    assert again.best == best
    again.rewind(0)
    assert again.best is None, "its checkpoint is gone"


def saved(run: RunFolder, *steps: int) -> None:
    """Checkpoints with a manifest, as a learner writes them."""
    for step in steps:
        with run.checkpoint(step) as folder:
            for name in ("learner", "hf"):
                (folder / name).mkdir()
                (folder / name / "weights").write_text(f"weights of step {step}")
            write_manifest(folder)


def flip(path: Path) -> None:
    """One bit on the disk turns; the size stays."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_the_newest_good_checkpoint_is_the_newest(run: RunFolder) -> None:
    passed: list[int] = []
    assert run.latest_good_checkpoint(lambda bad, _: passed.append(bad.step)) is None, "none yet is no fault"
    saved(run, 9, 10)
    found = run.latest_good_checkpoint(lambda bad, _: passed.append(bad.step))
    assert found is not None and (found.step, passed) == (10, [])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: flip(folder / "hf" / "weights"), "hf/weights is damaged: sha256"),
        (lambda folder: (folder / "learner" / "weights").write_text(""), "learner/weights is damaged: it has 0 bytes"),
        (lambda folder: (folder / "hf" / "weights").unlink(), "hf/weights cannot be read: No such file"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_loudly(run: RunFolder, damage: Any, words: str) -> None:
    saved(run, 1, 2, 3)
    damage(run.path / "checkpoints" / "step_3")
    flip(run.path / "checkpoints" / "step_2" / "learner" / "weights")
    told: dict[int, str] = {}
    found = run.latest_good_checkpoint(lambda bad, reason: told.update({bad.step: reason}))
    assert found is not None and found.step == 1
    assert list(told) == [3, 2] and words in told[3]
    assert "ERROR checkpoint step_3 is passed over: " in (run.path / "events.log").read_text()
    names = sorted(item.name for item in (run.path / "checkpoints").iterdir())
    assert names == ["step_1", "step_2.damaged", "step_3.damaged"]
    run.rewind(1)
    saved(run, 2)
    assert [checkpoint.step for checkpoint in list_checkpoints(run.path)] == [1, 2]


def test_with_every_checkpoint_damaged_nothing_is_guessed(run: RunFolder) -> None:
    saved(run, 1, 2)
    for step in (1, 2):
        flip(run.path / "checkpoints" / f"step_{step}" / "hf" / "weights")
    for _ in range(2):  # a second try must not begin anew in silence
        with pytest.raises(DataError, match=r"no checkpoint of .* is whole \(.*step_2.*step_1.*restore one"):
            run.latest_good_checkpoint(lambda bad, reason: None)


def test_the_best_step_is_forgotten_with_its_checkpoint(run: RunFolder) -> None:
    saved(run, 1, 2)
    run.mark_best(BestStep(step=2, metric=BestMetric.ACCURACY, value=0.75))
    flip(run.path / "checkpoints" / "step_2" / "hf" / "weights")
    run.latest_good_checkpoint(lambda bad, reason: None)
    run.rewind(2)
    assert run.best is None


def test_the_best_of_the_checkpoints_that_are_left_is_kept(run: RunFolder, tmp_path: Path) -> None:
    """Here the one before the newest was evaluated worse than an older one, and a better one has no checkpoint."""
    images = draw_images(tmp_path / "images")
    for step, accuracy in {4: 1.0, 7: 0.6, 15: 0.5, 20: 0.7}.items():
        run.log_metrics(step, {})
        run.write_evaluation(f"step_{step}", evaluation_records(10, accuracy, images))
    saved(run, 7, 15, 20)
    run.mark_best(BestStep(step=20, metric=BestMetric.ACCURACY, value=0.7))
    flip(run.path / "checkpoints" / "step_20" / "hf" / "weights")
    found = run.latest_good_checkpoint(lambda bad, reason: None)
    assert found is not None and found.step == 15
    run.rewind(15)
    left = read_state(run.path).best
    assert left is not None and (left.step, left.value) == (7, read_evaluation(run.path, "step_7")["eval/accuracy"])
    for step in (16, 17, 18):
        with run.checkpoint(step, keep_last=1):
            pass
    assert [checkpoint.step for checkpoint in list_checkpoints(run.path)] == [7, 18]


@pytest.mark.parametrize(
    ("metric", "value", "better"),
    [
        (BestMetric.ACCURACY, 0.6, True),
        (BestMetric.ACCURACY, 0.5, False),
        (BestMetric.VALID_SHARE, 0.1, True),  # of another metric: nothing to compare with
    ],
)
def test_what_beats_the_best(metric: BestMetric, value: float, better: bool) -> None:
    assert BestStep(step=1, metric=BestMetric.ACCURACY, value=0.5).is_beaten_by(metric, value) is better
    early = BestStep(step=1, metric=BestMetric.EARLY_SHARE, value=0.5)
    assert early.is_beaten_by(BestMetric.EARLY_SHARE, 0.4) and not early.is_beaten_by(BestMetric.EARLY_SHARE, 0.6)


def test_an_evaluation_leaves_its_numbers_too(run: RunFolder) -> None:
    path = run.write_evaluation("step_4", [make_record(1, [True], correct=True), make_record(2, None, correct=False)])
    numbers = json.loads(path.with_suffix(".json").read_text())
    assert (numbers["eval/questions"], numbers["eval/accuracy"], numbers["eval/judged"]) == (2.0, 0.5, 1.0)


def test_leftovers_of_a_killed_process_are_cleared_and_noted(run: RunFolder) -> None:
    checkpoints = run.path / "checkpoints"
    (checkpoints / ".step_7.tmp").mkdir()
    (checkpoints / ".step_7.tmp" / "half").write_text("")
    (checkpoints / ".step_6.outdated.tmp").mkdir()  # killed between setting the old one aside and the new one in place
    (run.path / "rollouts" / ".step_00001.parquet.123.tmp").write_text("half")
    again = reopen(run)
    assert [item.name for item in checkpoints.iterdir()] == ["step_6"]
    assert list((run.path / "rollouts").iterdir()) == []
    assert "cleared .step_7.tmp" in (again.path / "events.log").read_text()


def test_a_record_that_cannot_be_written_ends_the_run_and_goes_on_where_there_is_room(
    run: RunFolder, tmp_path: Path
) -> None:
    """/dev/full takes nothing, as a full disk."""
    images = draw_images(tmp_path / "images")
    run.metrics_path.symlink_to("/dev/full")
    words = r"metrics\.jsonl cannot be written: No space left on device; the run ends here.* resume=<it>"
    with pytest.raises(ResourceError, match=words):
        run.log_metrics(1, {"accuracy": 0.5})
    assert run.state.step == 0
    (run.path / "rollouts").rmdir()
    with pytest.raises(ResourceError, match=r"step_00001\.parquet cannot be written: "):
        run.write_rollouts(1, training_traces(1, 3, images))
    run.metrics_path.unlink()
    (run.path / "rollouts").mkdir()
    again = reopen(run)
    again.write_rollouts(1, training_traces(1, 3, images))
    again.log_metrics(1, {"accuracy": 0.5})
    assert [row["step"] for row in read_metrics(run.path).rows] == [1]


def test_faults_and_events_that_cannot_be_written_end_nothing(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("events.log", FAULTS_FILE):
        (run.path / name).unlink(missing_ok=True)
    faults = FaultLog(run.path / FAULTS_FILE)
    for name in ("events.log", FAULTS_FILE):
        (run.path / name).symlink_to("/dev/full")
    run.event("something happened")
    faults.begin(FaultKind.CHECKPOINT_FAILED, "step_3")
    assert caplog.text.count("No space left on device") == 2
    assert faults.take_metrics() == {"faults/checkpoint_failed": 1.0}


def test_one_writer_at_a_time(run: RunFolder) -> None:
    with pytest.raises(ResourceError, match=r"is being written by process \d+ on"):
        RunFolder.open(run.path)
    run.close()
    RunFolder.open(run.path).close()


def test_a_look_at_the_lock_leaves_what_its_holder_wrote(run: RunFolder) -> None:
    said = RunLock.holder(run.path)
    assert RunLock.is_held(run.path)
    run.close()
    (run.path / LOCK_FILE).write_text("process 1 on elsewhere\n")
    assert not RunLock.is_held(run.path)
    assert RunLock.holder(run.path) == "process 1 on elsewhere" != said
    (run.path / LOCK_FILE).unlink()
    assert not RunLock.is_held(run.path)
    assert not (run.path / LOCK_FILE).exists()


def test_a_lock_that_cannot_be_opened_is_one_line(run: RunFolder) -> None:
    run.close()
    (run.path / LOCK_FILE).unlink()
    (run.path / LOCK_FILE).mkdir()  # a mode would not keep root out
    for ask in (RunLock.take, RunLock.is_held):
        with pytest.raises(ResourceError, match=r"run\.lock cannot be opened: .*; use a run of your own"):
            ask(run.path)


def test_a_run_may_have_a_name(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", {}, name="slurm-4711")
    assert run.path == tmp_path / "demo" / "slurm-4711"
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"run_name=slurm-4711: .*/demo/slurm-4711 exists already.* resume=auto"):
            RunFolder.create(tmp_path, "demo", {}, name="slurm-4711")
        run.close()
    with pytest.raises(ConfigError, match=r"run_name='\.\./up' names a folder"):
        RunFolder.create(tmp_path, "demo", {}, name="../up")


def test_a_name_whose_folder_was_not_finished_is_taken_over_and_nobody_elses(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path, "demo", {}, name="a")
    folder = first.path
    for file in ("state.json", "events.log"):
        (folder / file).unlink()
    (folder / ".state.json.x.tmp").touch()
    with pytest.raises(ResourceError, match="is being written by process"):
        RunFolder.create(tmp_path, "demo", {}, name="a")  # the other one is not dead
    first.close()
    with RunFolder.create(tmp_path, "demo", {}, name="a") as run:
        assert read_state(run.path).status == RunStatus.RUNNING
    other = tmp_path / "demo" / "b"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="exists already"):
        RunFolder.create(tmp_path, "demo", {}, name="b")


def give_format(folder: Path, number: int | None) -> None:
    """Make a run look as another version wrote it; None: before there were formats."""
    tree = json.loads((folder / "state.json").read_text())
    del tree["format"]
    (folder / "state.json").write_text(json.dumps(tree if number is None else {**tree, "format": number}))


@pytest.mark.parametrize(("number", "words"), [(None, "an earlier version .*format 1"), (99, "a later version")])
def test_a_run_of_another_format_is_read_and_not_gone_on_with(run: RunFolder, number: int | None, words: str) -> None:
    assert read_state(run.path).format == FORMAT == 2
    with run.checkpoint(1):
        pass
    run.close()
    give_format(run.path, number)
    before = (run.path / "events.log").read_text()
    with pytest.raises(DataError, match=f"{words}.*start a new run, or resume it with that version"):
        RunFolder.open(run.path)
    assert (run.path / "events.log").read_text() == before
    with pytest.raises(DataError, match=words):
        resumed_run("auto", run.path.parent.parent, "demo", None)
    assert read_state(run.path).format == (number or 1)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no run folder"):
        RunFolder.open(tmp_path)


def test_rollout_rows_hold_everything_about_a_completion(run: RunFolder, tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images")
    traces = training_traces(3, 40, images)
    rows = read_rows(run.write_rollouts(3, traces))
    assert [row.key for row in rows] == [scored.trace.completion.key for scored in traces]
    for row, scored in zip(rows, traces, strict=True):
        completion = scored.trace.completion
        assert row.text == completion.text
        assert [row.text[start:end] for start, end in row.char_spans] == row.steps
        assert [tuple(span) for span in row.token_spans] == completion.spans
        assert row.token_advantages == scored.token_advantages
        assert row.num_completion_tokens == len(completion.completion_token_ids)
        assert (row.reward, row.advantage, row.in_baseline) == (scored.reward, scored.advantage, scored.in_baseline)
        assert row.correct == (scored.answer_reward > 0.6)


def test_failed_and_missing_judgements_stay_apart(run: RunFolder) -> None:
    failed = make_record(1, FailureReason.TIMEOUT, correct=False)
    unjudged = make_record(2, None, correct=True)
    judged = make_record(3, [True, False], correct=True)
    rows = read_rows(run.write_evaluation("step_4", [failed, unjudged, judged]))
    assert [row.valid for row in rows] == [None, None, [True, False]]
    assert [row.judge_failure for row in rows] == ["timeout", None, None]
    assert [row.judge_attempts for row in rows] == [1, None, 1]


def test_files_from_before_the_judge_was_named_are_read(run: RunFolder) -> None:
    path = run.write_evaluation("step_4", [make_record(3, [True, False], correct=True)])
    table = pq.read_table(path)
    pq.write_table(
        table.drop_columns(["judge_model", "judge_rubric", "answer_judge_model", "answer_judge_rubric"]), path
    )
    (row,) = read_rows(path)
    assert (row.valid, row.judge_model, row.judge_rubric) == ([True, False], None, None)
    pq.write_table(table.drop_columns(["judge_attempts"]), path)
    with pytest.raises(DataError, match="differing: judge_attempts"):
        read_rows(path)


def test_columns_keep_their_types_when_all_is_null(run: RunFolder) -> None:
    path = run.write_evaluation("before", [make_record(1, None, correct=True)])
    empty = run.write_evaluation("after", [])
    assert pq.read_schema(path) == pq.read_schema(empty)
    assert str(pq.read_schema(path).field("token_advantages").type) == "list<element: double>"
