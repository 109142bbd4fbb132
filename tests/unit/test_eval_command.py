"""`make eval` without engines: what is evaluated, on which questions, from where it goes on."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrpo.choices import AnswerKind, BestMetric, CheckpointChoice, JudgeKind
from mrpo.collection import Collector
from mrpo.compose import choices, compose_config
from mrpo.config import RewardConfig, plain
from mrpo.data.jsonl import write_jsonl
from mrpo.errors import ConfigError, DataError, JudgeBudgetError, JudgeUnavailableError, ResourceError
from mrpo.eval.__main__ import main, prepare_job
from mrpo.eval.evaluate import evaluate
from mrpo.eval.evaluation import write_facts
from mrpo.eval.generations import GeneratedElsewhere, read_generations
from mrpo.eval.questions import load_question_sets
from mrpo.eval.store import EvaluationStore
from mrpo.eval.subject import find_subject
from mrpo.manifest import write_manifest
from mrpo.rewards.scorer import build_answer_scorer
from mrpo.rows import read_rows, write_rows
from mrpo.run_folder import RunFolder
from mrpo.run_reading import BestStep
from mrpo.types import AnswerRequest, Example, FailureReason, JudgeFailure, Judgement, JudgeRequest, Verdicts
from tests.unit.checkpoint_folders import write_checkpoint
from tests.unit.evaluation_world import make_facts, make_row
from tests.unit.fakes import FakeJudge

RIGHT = "<think>An MRI of the kidney. The right side is affected.</think><answer>right</answer>"
WRONG = "<think>A CT.</think><answer>left</answer>"


def prepared(root: Path, name: str = "vqa_rad", num: int = 5) -> list[Example]:
    """A set as `make data` leaves it."""
    folder = root / name
    (folder / "images").mkdir(parents=True)
    image = folder / "images" / "scan.png"
    Image.new("L", (8, 8)).save(image)
    examples = [
        Example(
            id=f"{name}-test-{number}",
            image=str(image),
            question=f"Which side, {number}?",
            answer="right",
            rationale=None,
            dataset=name,
            split="test",
            license="CC0-1.0",
        )
        for number in range(num)
    ]
    write_jsonl(examples, folder / "test.jsonl", root=folder)
    (folder / "manifest.json").write_text(json.dumps({"open_rule": "non_yes_no"}))
    return examples


def collector_of(outputs: dict[str, str], judge: FakeJudge | None = None) -> Collector:
    reward = RewardConfig()
    return Collector(
        rollout=GeneratedElsewhere(outputs, step_strategy="sentence"),
        judge=judge,
        answers=build_answer_scorer(reward, None),
        answer_kind=AnswerKind.JUDGE if judge else AnswerKind.EXACT,
    )


def run(examples: list[Example], collector: Collector, store: EvaluationStore, **changes: Any) -> list[str]:
    """Evaluate; returns what was told of the progress."""
    told: list[str] = []
    settings: dict[str, Any] = {"max_new_tokens": 9, "chunk_size": 2, "threshold": 0.6, "max_failure_share": 0.2}
    work = evaluate(
        examples, collector, store, on_progress=lambda done, total: told.append(f"{done}/{total}"), **settings | changes
    )
    asyncio.run(work)
    return told


def test_every_question_is_measured_once_and_kept_in_order(tmp_path: Path) -> None:
    examples = prepared(tmp_path)
    outputs = {example.id: RIGHT if number % 2 else WRONG for number, example in enumerate(examples)}
    with EvaluationStore.open(tmp_path / "out", {"subject": "x"}) as store:
        assert run(examples, collector_of(outputs), store) == ["0/5", "2/5", "4/5", "5/5"]
        results = store.finish([example.id for example in examples])
    rows = read_rows(results)
    assert [row.prompt_id for row in rows] == [example.id for example in examples]
    assert [row.correct for row in rows] == [False, True, False, True, False]
    assert [len(row.steps) for row in rows] == [1, 2, 1, 2, 1]


def test_a_killed_evaluation_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    examples = prepared(tmp_path)
    only_three = collector_of({example.id: RIGHT for example in examples[:3]})
    with EvaluationStore.open(tmp_path / "out", {}) as store, pytest.raises(KeyError):
        run(examples, only_three, store)  # the second chunk fails: its question 2 is lost with question 3
    late = collector_of({example.id: RIGHT for example in examples[2:]})
    with EvaluationStore.open(tmp_path / "out", {}) as store:
        assert list(store.rows) == [example.id for example in examples[:2]]
        assert run(examples, late, store) == ["2/5", "4/5", "5/5"]
        assert len(read_rows(store.finish([example.id for example in examples]))) == 5


def test_failed_judgements_are_asked_again(tmp_path: Path) -> None:
    examples = prepared(tmp_path, num=3)
    outputs = {example.id: RIGHT for example in examples}
    judge = FakeJudge()
    judge.failing_answers = lambda request: FailureReason.TIMEOUT if "test-1" in request.key else None
    with EvaluationStore.open(tmp_path / "out", {}) as store:
        run(examples, collector_of(outputs, judge), store)
        assert [row.answer_judge_failure for row in store.rows.values()] == [None, "timeout", None]
    with EvaluationStore.open(tmp_path / "out", {}) as store:
        assert run(examples, collector_of(outputs, FakeJudge()), store) == ["2/3", "3/3"]
        assert all(row.answer_judge_failure is None for row in store.rows.values())


class LenientJudge(FakeJudge):
    """Finds every step valid, where it does not fail."""

    async def judge(self, request: JudgeRequest) -> Judgement:
        self.calls.append(request)
        reason, num_steps = self.failing(request), len(request.steps)
        verdicts = Verdicts(alignment=[True] * num_steps, contribution=[True] * num_steps)
        outcome = JudgeFailure(reason=reason) if reason else verdicts
        return Judgement(key=request.key, outcome=outcome, started_s=1.0, ended_s=2.0, attempts=1)


def with_rationales(examples: list[Example]) -> list[Example]:
    return [replace(example, rationale="An MRI of the kidney. The right side.") for example in examples]


def test_a_spent_budget_ends_an_evaluation_that_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    """A chunk has two questions; the second one's ruling is refused, whatever share of failures is allowed."""
    examples = prepared(tmp_path)
    outputs = {example.id: RIGHT for example in examples}
    poor = FakeJudge(failing_answers=lambda request: FailureReason.BUDGET if "test-1" in request.key else None)
    with EvaluationStore.open(tmp_path / "out", {}) as store, pytest.raises(JudgeBudgetError, match="as told"):
        run(examples, collector_of(outputs, poor), store, max_failure_share=1.0)
    assert len(poor.answer_calls) == 2
    richer = FakeJudge()
    with EvaluationStore.open(tmp_path / "out", {}) as store:
        assert [row.answer_judge_failure for row in store.rows.values()] == [None, "budget"]
        run(examples, collector_of(outputs, richer), store)
        assert [row.correct for row in read_rows(store.finish([example.id for example in examples]))] == [True] * 5
    assert sorted(call.key for call in richer.answer_calls) == [f"vqa_rad-test-{n}#0" for n in range(1, 5)]
    still_poor = FakeJudge(failing_answers=lambda request: FailureReason.BUDGET)
    with EvaluationStore.open(tmp_path / "other", {}) as store:
        for _ in range(2):
            with pytest.raises(JudgeBudgetError):
                run(examples[:2], collector_of(outputs, still_poor), store)


def test_a_retry_asks_for_what_is_missing_alone_and_keeps_the_rest(tmp_path: Path) -> None:
    examples = with_rationales(prepared(tmp_path, num=3))
    outputs = {example.id: RIGHT for example in examples}
    first = LenientJudge()
    first.failing = lambda request: FailureReason.BAD_JSON if "test-0" in request.key else None
    first.failing_answers = lambda request: FailureReason.TIMEOUT if "test-1" in request.key else None
    with EvaluationStore.open(tmp_path / "out", {}) as store:
        run(examples, collector_of(outputs, first), store)
        before = store.rows
    down = LenientJudge(
        failing=lambda request: FailureReason.TIMEOUT, failing_answers=lambda request: FailureReason.REFUSED
    )
    nothing = collector_of({}, down)  # nothing is sampled again
    with EvaluationStore.open(tmp_path / "out", {}) as store:
        assert run(examples, nothing, store) == ["1/3", "3/3"]
        assert [call.key for call in down.calls] == ["vqa_rad-test-0#0"]
        assert [call.key for call in down.answer_calls] == ["vqa_rad-test-1#0"]
        rows = list(store.rows.values())
    assert [(row.judge_failure, row.answer_judge_failure) for row in rows] == [
        ("timeout", None),
        (None, "refused"),
        (None, None),
    ]
    assert [(row.judge_attempts, row.answer_judge_attempts) for row in rows] == [(2, 1), (1, 2), (1, 1)]
    assert (rows[0].correct, rows[1].alignment) == (True, before["vqa_rad-test-1"].alignment) != (True, None)
    with EvaluationStore.open(tmp_path / "out", {}) as store:
        run(examples, collector_of({}, LenientJudge()), store)
        rows = list(store.rows.values())
    assert [(row.judge_attempts, row.answer_judge_attempts) for row in rows] == [(3, 1), (1, 3), (1, 1)]
    assert all(row.correct and row.alignment is not None for row in rows)
    assert [(row.text, row.steps, row.token_spans, row.rollout_ended_s) for row in rows] == [
        (row.text, row.steps, row.token_spans, row.rollout_ended_s) for row in before.values()
    ]


def test_a_judge_that_is_down_ends_the_evaluation_and_what_is_measured_stays(tmp_path: Path) -> None:
    examples = prepared(tmp_path, num=40)
    outputs = {example.id: RIGHT for example in examples}
    down = FakeJudge(failing_answers=lambda request: FailureReason.TRANSPORT)
    with EvaluationStore.open(tmp_path / "out", {}) as store:
        with pytest.raises(JudgeUnavailableError, match=r"no ruling on 16 of 16 completions \(transport: as told\)"):
            run(examples, collector_of(outputs, down), store)
        assert len(store.rows) == 16 and len(down.answer_calls) == 16
    later = FakeJudge(failing_answers=lambda request: None if int(request.key[13:-2]) > 15 else FailureReason.TIMEOUT)
    with EvaluationStore.open(tmp_path / "out", {}) as store:
        with pytest.raises(JudgeUnavailableError, match=r"no ruling on 16 of 16 completions \(timeout: as told\)"):
            run(examples, collector_of(outputs, later), store)  # the 24 new ones come first and are rated
        assert len(store.rows) == 40 and sum(row.correct for row in store.rows.values()) == 24
    with EvaluationStore.open(tmp_path / "out", {}) as store:
        assert run(examples, collector_of(outputs, FakeJudge()), store)[0] == "24/40"
        assert all(row.correct for row in store.rows.values())


def test_some_questions_on_which_the_judge_always_fails_do_not_stop_it(tmp_path: Path) -> None:
    examples = prepared(tmp_path, num=100)
    outputs = {example.id: RIGHT for example in examples}

    def failing(request: AnswerRequest) -> FailureReason | None:  # one in five
        return FailureReason.BAD_JSON if int(request.key.split("#")[0].rsplit("-", 1)[1]) % 5 == 0 else None

    for _ in range(2):
        judge = FakeJudge(failing_answers=failing)
        with EvaluationStore.open(tmp_path / "out", {}) as store:
            run(examples, collector_of(outputs, judge), store, chunk_size=20)
            assert len([row for row in store.rows.values() if row.answer_judge_failure]) == 20
    assert len(judge.answer_calls) == 20


def test_a_folder_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    EvaluationStore.open(tmp_path / "out", {"subject": "a", "seed": 0}).__exit__()
    with pytest.raises(ConfigError, match=r"another seed \(0, now 1\); set benchmark\.out"):
        EvaluationStore.open(tmp_path / "out", {"subject": "a", "seed": 1})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is no folder of an evaluation"):
        EvaluationStore.open(tmp_path / "other", {})
    assert [item.name for item in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match=r"benchmark\.out=.*thesis\.tex cannot be a folder"):
        EvaluationStore.open(tmp_path / "other" / "thesis.tex", {})
    (tmp_path / "killed").mkdir()
    for name in ("run.lock", ".evaluation.json.7.tmp"):  # what a kill leaves before the identity is written
        (tmp_path / "killed" / name).write_text("")
    EvaluationStore.open(tmp_path / "killed", {}).__exit__()
    same = {"subject": "a", "seed": 0}
    with EvaluationStore.open(tmp_path / "out", same), pytest.raises(ResourceError, match="is being written by"):
        EvaluationStore.open(tmp_path / "out", same)


def test_sets_must_be_prepared_and_named_once(tmp_path: Path) -> None:
    prepared(tmp_path)
    (found,) = load_question_sets(tmp_path, ["vqa_rad"], num_questions=3)
    assert (found.name, found.open_rule, len(found.examples)) == ("vqa_rad", "non_yes_no", 3)
    with pytest.raises(ConfigError, match=r"slake is not prepared: no .*; run make data with data\.set=slake"):
        load_question_sets(tmp_path, ["slake"], num_questions=None)
    with pytest.raises(ConfigError, match="names vqa_rad twice"):
        load_question_sets(tmp_path, ["vqa_rad", "vqa_rad"], num_questions=None)
    with pytest.raises(ConfigError, match="no such set"):
        load_question_sets(tmp_path, ["vqarad"], num_questions=None)
    with pytest.raises(ConfigError, match="no set to evaluate on"):
        load_question_sets(tmp_path, [], num_questions=None)
    (tmp_path / "vqa_rad" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        load_question_sets(tmp_path, ["vqa_rad"], num_questions=None)


@pytest.mark.parametrize("layout", ["list", "object", "jsonl", "by_content"])
def test_outputs_from_elsewhere_are_matched_to_questions(tmp_path: Path, layout: str) -> None:
    examples = prepared(tmp_path, num=2)
    file = tmp_path / ("outputs.jsonl" if layout == "jsonl" else "outputs.json")
    rows: list[dict[str, Any]] = [{"id": example.id, "prediction": RIGHT} for example in examples]
    rows.append({"id": "of another set", "prediction": "?"})
    if layout == "by_content":
        rows = [
            {"image": "other/place/scan.png", "problem": f"<image>{example.question.upper()}", "output": RIGHT}
            for example in examples
        ]
    if layout == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        file.write_text(json.dumps({"results": rows} if layout == "object" else rows))
    questions = {example.id: example for example in examples}
    found = read_generations(file, questions)
    assert found.outputs == dict.fromkeys(questions, RIGHT)
    assert found.unmatched == ([] if layout == "by_content" else [3])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[{", "cannot be read as .json"),
        ("7", "expected a list of objects"),
        ("[7]", "row 1: expected an object, got int"),
        ('[{"id": "vqa_rad-test-0"}]', "row 1: no output"),
        ('[{"id": "vqa_rad-test-0", "text": "a"}, {"id": "vqa_rad-test-0", "text": "b"}]', "row 2: a second output"),
        ('[{"id": "vqa_rad-test-0", "text": "a"}]', "no output for 1 of 2 questions, the first is vqa_rad-test-1"),
    ],
)
def test_bad_outputs_are_named(tmp_path: Path, content: str, words: str) -> None:
    questions = {example.id: example for example in prepared(tmp_path, num=2)}
    file = tmp_path / "outputs.json"
    file.write_text(content)
    with pytest.raises(DataError, match=words):
        read_generations(file, questions)


def stored_under(folder: Path, places: list[str], questions: list[str]) -> dict[str, Example]:
    """Questions whose images lie at `places` of a prepared set, by id."""
    examples = prepared(folder, num=len(places))
    pairs = zip(examples, places, questions, strict=True)
    return {
        example.id: replace(example, image=str(folder / "slake" / "images" / place), question=question)
        for example, place, question in pairs
    }


def test_images_of_one_name_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    places = ["xmlab1/source.jpg", "xmlab2/source.jpg"]
    questions = stored_under(tmp_path, places, ["Which organ?"] * 2)
    file = tmp_path / "outputs.json"
    rows = [
        {"image": "imgs/xmlab2/source.jpg", "question": "Which organ?", "output": "liver"},
        {"image": "xmlab1_source.jpg", "question": "Which organ?", "output": "lung"},
    ]
    file.write_text(json.dumps(rows))
    assert list(read_generations(file, questions).outputs.items()) == [
        ("vqa_rad-test-1", "liver"),
        ("vqa_rad-test-0", "lung"),
    ]
    file.write_text(json.dumps([{**rows[0], "image": "source.jpg"}]))
    with pytest.raises(DataError, match=r"no output for 2 of 2 .* and 1 rows that belong to none;.*MD5"):
        read_generations(file, questions)


def test_a_row_never_answers_two_questions(tmp_path: Path) -> None:
    questions = stored_under(tmp_path, ["a/1.jpg", "b/1.jpg"], ["Which organ?", "which  organ?"])
    file = tmp_path / "outputs.json"
    file.write_text(json.dumps([{"image": "1.jpg", "question": "Which organ?", "output": "liver"}]))
    with pytest.raises(DataError, match="row 1 fits 2 questions, among them vqa_rad-test-0 and vqa_rad-test-1; give"):
        read_generations(file, questions)


def test_an_object_by_question_id_keeps_its_ids(tmp_path: Path) -> None:
    questions = {example.id: example for example in prepared(tmp_path, num=2)}
    file = tmp_path / "outputs.json"
    file.write_text(json.dumps({"vqa_rad-test-1": {"output": "b"}, "vqa_rad-test-0": "a", "other": {"output": "c"}}))
    found = read_generations(file, questions)
    assert found.outputs == {"vqa_rad-test-0": "a", "vqa_rad-test-1": "b"} and found.unmatched == [3]


def test_an_untagged_output_is_all_answer(tmp_path: Path) -> None:
    examples = prepared(tmp_path, num=1)
    with EvaluationStore.open(tmp_path / "out", {}) as store:
        run(examples, collector_of({examples[0].id: " Right. "}), store)
        (row,) = store.rows.values()
    assert (row.answer, row.correct, row.steps) == ("Right.", True, [])


def test_a_run_folder_names_its_checkpoint_and_how_its_policy_is_asked(tmp_path: Path) -> None:
    config = compose_config(["rollout.max_new_tokens=77", "algorithm.step_strategy=fixed_tokens:9", "model.path=x"])
    with RunFolder.create(tmp_path, "phantom", plain(replace(config, resume=None))) as folder:
        with pytest.raises(ConfigError, match="has no checkpoint yet"):
            find_subject(str(folder.path), CheckpointChoice.LATEST)
        for step in (1, 2):
            folder.log_metrics(step, {})
            with folder.checkpoint(step) as target:
                (target / "hf").mkdir()
                (target / "hf" / "config.json").write_text("{}")
                write_manifest(target)
        with pytest.raises(ConfigError, match=r"was not evaluated during training"):
            find_subject(str(folder.path), CheckpointChoice.BEST)
        folder.mark_best(BestStep(step=1, metric=BestMetric.ACCURACY, value=0.5))
    best = find_subject(str(folder.path), CheckpointChoice.BEST)
    assert best.path == str(folder.path / "checkpoints" / "step_1" / "hf")
    assert best.name == f"phantom-{folder.path.name}-step_1"
    for named in (folder.path, folder.path / "checkpoints" / "step_2", folder.path / "checkpoints" / "step_2" / "hf"):
        latest = find_subject(str(named), CheckpointChoice.LATEST)
        assert latest.path == str(folder.path / "checkpoints" / "step_2" / "hf")
        again = compose_config(latest.overrides)
        assert (again.rollout.max_new_tokens, again.algorithm) == (77, config.algorithm)
        assert again.model.path is None and again.model.terse_prompt
    (folder.path / "checkpoints" / "step_2" / "hf" / "config.json").write_text("[]")
    with pytest.raises(DataError, match=r"step_2/hf/config\.json is damaged"):
        find_subject(str(folder.path), CheckpointChoice.LATEST)


@pytest.mark.parametrize("algorithm", choices("algorithm"))
def test_whatever_a_policy_was_trained_by_it_is_measured_without_a_judge(algorithm: str, tmp_path: Path) -> None:
    prepared(tmp_path)
    trained = plain(compose_config([f"algorithm={algorithm}", "judge.noise=0.1"]))
    with RunFolder.create(tmp_path, "phantom", trained) as folder, folder.checkpoint(1) as target:
        write_checkpoint(target / "hf")
    model = f"benchmark.model={folder.path}"
    config = prepare_job([f"benchmark.root={tmp_path}", model, "benchmark.sets=[vqa_rad]"]).config
    assert config.judge.kind == JudgeKind.NONE


def test_what_the_command_refuses_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(tmp_path)
    root = f"benchmark.root={tmp_path}"
    model = ["benchmark.sets=[vqa_rad]", f"benchmark.model={tmp_path}"]
    outputs = f"benchmark.generations={tmp_path / 'none.json'}"
    for arguments, words in (
        ([root], "give either benchmark.model or benchmark.generations"),
        ([root, *model, outputs], "give either benchmark.model or benchmark.generations"),
        ([root, *model], "no model at"),
        ([root, outputs], "no set to evaluate on"),
        ([root, outputs, "benchmark.sets=[vqa_rad]"], "no such file"),
        ([root, outputs, "benchmark.sett=[vqa_rad]"], "unknown setting 'benchmark.sett'"),
        ([root, "eval.generations=x.json"], "of make eval it is benchmark.generations"),
    ):
        assert main(arguments) == 2, arguments
        assert words in " ".join(capsys.readouterr().err.split()), arguments


def test_evaluations_side_by_side_need_names_and_a_folder_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "results.parquet", [make_row(0, correct=True)])
        write_facts(tmp_path / name, make_facts("[red]ours" if name == "a" else "ours"))
    (tmp_path / "file").write_text("")
    compare = f"benchmark.compare=[{tmp_path / 'a'},{tmp_path / 'b'}]"

    def said(*arguments: str) -> str:
        assert main(arguments) == 2, arguments
        return " ".join(capsys.readouterr().err.split())

    assert "benchmark.compare needs benchmark.out" in said(compare)
    assert "holds an evaluation of its own" in said(compare, f"benchmark.out={tmp_path / 'a'}")
    assert "cannot be a folder" in said(compare, f"benchmark.out={tmp_path / 'file'}")
    assert "cannot be a folder" in said(compare, f"benchmark.out={tmp_path / 'file' / 'below'}")
    twice = said(f"benchmark.compare=[{tmp_path / 'b'},{tmp_path / 'b'}]", f"benchmark.out={tmp_path / 'out'}")
    assert "two evaluations are named 'ours'" in twice and "benchmark.name=<name>" in twice
    assert f"{tmp_path / 'b'} and {tmp_path / 'b'}" in twice
    assert main([compare, f"benchmark.out={tmp_path / 'out'}"]) == 0
    assert "[red]ours" in capsys.readouterr().out


def test_answers_are_judged_where_there_is_a_judge(tmp_path: Path) -> None:
    examples = prepared(tmp_path)
    file = tmp_path / "outputs.json"
    file.write_text(json.dumps([{"id": example.id, "text": RIGHT} for example in examples]))
    arguments = [f"benchmark.root={tmp_path}", f"benchmark.generations={file}", "benchmark.sets=[vqa_rad]"]
    assert prepare_job(arguments).config.reward.answer.kind == AnswerKind.MIXED
    assert prepare_job([*arguments, "judge=lexical"]).config.reward.answer.kind == AnswerKind.JUDGE
    exact = prepare_job([*arguments, "judge=lexical", "reward.answer.kind=exact"])
    assert exact.config.reward.answer.kind == AnswerKind.EXACT
    assert [item.name for item in exact.sets] == ["vqa_rad"] and exact.model_folder is None
    whole = prepare_job([*arguments, "judge=lexical", "reward.answer={kind: exact}"])
    assert whole.config.reward.answer.kind == AnswerKind.EXACT
    for other in ("reward.answer_weight=2", "reward.answer.bertscore.batch_size=2"):
        assert prepare_job([*arguments, other]).config.reward.answer.kind == AnswerKind.MIXED
    assert prepare_job([*arguments, "benchmark.name=ours"]).name == "ours"
