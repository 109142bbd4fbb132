"""The checks of a disturbed run's record: each must see what it is there for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo.config import Config, RolloutConfig, plain
from mrpo.faults import FAULTS_FILE, FaultKind, FaultLog
from mrpo.rows import read_rows, write_rows
from mrpo.run_folder import RunFolder
from mrpo.run_reading import RunStatus, list_rollouts
from mrpo.sampling_order import prompts_of_step
from mrpo.scoring import Trace, score_group_batch
from mrpo.trace_row import TraceRow
from tests.integration import chaos_record
from tests.unit.synthetic_run import TRUTHS, make_completion, make_example, make_judgement

NUM_STEPS = 3
CONFIG = Config(num_steps=NUM_STEPS, rollout=RolloutConfig(prompts_per_step=2, group_size=2))
EXAMPLES = [make_example(number) for number in range(4)]


def write_run(runs: Path) -> Path:
    """A finished run that trained on what was due, with one fault that was mended."""
    with RunFolder.create(runs, "chaos", plain(CONFIG)) as run:
        for step in range(1, NUM_STEPS + 1):
            prompts = prompts_of_step(EXAMPLES, step - 1, prompts_per_step=2, seed=CONFIG.seed, shuffle=True)
            traces = []
            for prompt, example in prompts.items():
                for index in range(2):
                    completion = make_completion(example, TRUTHS, "upper left, 2" if index else "lower right, 1")
                    completion = replace(completion, prompt_id=prompt, sample_index=index, policy_version=step - 1)
                    judgement = make_judgement(completion, [True] * 4)
                    traces.append(
                        Trace(example=example, completion=completion, judgement=judgement, answer_reward=float(index))
                    )
            batch = score_group_batch(
                traces,
                group_size=2,
                algorithm=CONFIG.algorithm,
                reward=CONFIG.reward,
                on_failure=CONFIG.judge.on_failure,
            )
            run.write_rollouts(step, batch.traces)
            run.log_metrics(step, {"policy/loss": 1.0 / step, "time/step_s": 2.0})
        with run.checkpoint(NUM_STEPS) as checkpoint:
            (checkpoint / "hf").mkdir()
            (checkpoint / "hf" / "model.safetensors").write_bytes(b"weights")
        with FaultLog(run.path / FAULTS_FILE).during(FaultKind.ENGINE_LOST, "engine-0"):
            pass
        run.report_path.write_text("<td>engine_lost</td><td>engine-0</td>")
        run.set_status(RunStatus.FINISHED)
        return run.path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


def check(folder: Path, reference: Path | None = None) -> list[str]:
    """All that the checks say of a run on `EXAMPLES`."""
    found = [
        *chaos_record.wrong_steps(folder, NUM_STEPS),
        *chaos_record.wrong_prompts(folder, CONFIG, EXAMPLES),
        *chaos_record.not_finite(folder),
        *chaos_record.missing_in_report(folder),
    ]
    return found if reference is None else [*found, *chaos_record.differences(folder, reference)]


def edit_rows(folder: Path, step: int, edit: Callable[[list[TraceRow]], list[TraceRow]]) -> None:
    """Change a step's completions on record."""
    path = list_rollouts(folder)[step]
    write_rows(path, edit(read_rows(path)))


def edit_metrics(folder: Path, edit: Callable[[list[dict[str, float | None]]], list[dict[str, float | None]]]) -> None:
    """Change the metrics on record."""
    path = folder / "metrics.jsonl"
    rows = edit([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_sound_record_has_no_problems(run: Path, tmp_path: Path) -> None:
    assert check(run) == []
    assert check(run, write_run(tmp_path / "undisturbed")) == []
    assert chaos_record.highest_step(run) == NUM_STEPS
    assert chaos_record.highest_step(tmp_path) == 0


def test_a_step_left_out_or_logged_twice_is_seen(run: Path) -> None:
    edit_metrics(run, lambda rows: [rows[0], rows[1], rows[1], rows[2]])
    assert check(run) == ["metrics.jsonl has steps [1, 2, 2, 3], expected 1 to 3, each once"]
    list_rollouts(run)[2].unlink()
    edit_metrics(run, lambda rows: [rows[0], rows[-1]])
    assert len(check(run)) == 2


def test_a_prompt_left_out_and_one_trained_twice_are_seen(run: Path) -> None:
    edit_rows(run, 2, lambda rows: rows[:-1])
    assert len(check(run)) == 1 and "left out (1×)" in check(run)[0]
    edit_rows(run, 2, lambda rows: [*rows, rows[0], rows[0]])
    assert any("trained twice (2×)" in problem for problem in check(run))


def test_prompts_of_another_step_are_seen(run: Path) -> None:
    other = list_rollouts(run)[3]
    list_rollouts(run)[2].write_bytes(other.read_bytes())
    found = check(run)
    assert sum("left out" in problem for problem in found) == 4
    assert sum("not due" in problem for problem in found) == 4
    assert sum("sampled by policy 2" in problem for problem in found) == 4


def test_another_question_under_a_prompts_name_is_seen(run: Path) -> None:
    edit_rows(run, 1, lambda rows: [replace(rows[0], question="Which organ?"), *rows[1:]])
    [problem] = check(run)
    assert "was asked another question" in problem


def test_a_stale_completion_is_seen(run: Path) -> None:
    edit_rows(run, 3, lambda rows: [replace(rows[0], policy_version=1), *rows[1:]])
    [problem] = check(run)
    assert problem.startswith("step 3:") and problem.endswith("was sampled by policy 1")


def test_a_loss_that_is_not_finite_is_seen(run: Path) -> None:
    edit_metrics(run, lambda rows: [rows[0] | {"policy/loss": None}, *rows[1:]])
    assert check(run) == ["step 1: policy/loss is None"]


def test_a_fault_that_is_not_in_the_report_is_seen(run: Path) -> None:
    FaultLog(run / FAULTS_FILE).begin(FaultKind.LEARNER_LOST, "learner-1")
    assert check(run) == [
        "the report does not name learner-1",
        "the report does not name learner_lost",
    ]
    (run / "report.html").unlink()
    assert "there is no report" in check(run)


def test_another_loss_completion_or_weight_than_undisturbed_is_seen(run: Path, tmp_path: Path) -> None:
    reference = write_run(tmp_path / "undisturbed")
    edit_metrics(run, lambda rows: [*rows[:2], rows[2] | {"policy/loss": 0.3333333333333334, "time/step_s": 9.0}])
    edit_rows(run, 2, lambda rows: [replace(rows[0], text="other", judge_attempts=3, rollout_ended_s=0.0), *rows[1:]])
    (run / "checkpoints" / f"step_{NUM_STEPS}" / "hf" / "model.safetensors").write_bytes(b"weightz")
    assert chaos_record.differences(run, reference) == [
        "step 3: policy/loss is 0.3333333333333334, undisturbed 0.3333333333333333",
        f"step 2: {read_rows(list_rollouts(run)[2])[0].key}: text differs",
        "final weights differ: model.safetensors",
    ]


def test_a_run_that_did_not_finish_is_a_problem_by_itself(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "chaos", plain(CONFIG)) as run:
        run.set_status(RunStatus.INTERRUPTED, "an engine died")
    assert chaos_record.problems_of(run.path) == ["the run is interrupted, at step 0"]
