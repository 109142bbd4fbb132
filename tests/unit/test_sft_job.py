"""Supervised training without a learner: texts, order, schedule, settings, the loop over a fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from learner.schedule import sft_lr
from mrpo.choices import DataKind, JudgeKind
from mrpo.compose import compose_config
from mrpo.config import Config, plain
from mrpo.controller import StopRequested
from mrpo.data.load import Dataset
from mrpo.demonstration import write_demonstration
from mrpo.errors import ConfigError, DataError, LearnerLostError, NonFiniteError, ResourceError
from mrpo.families import FAMILIES, family_of
from mrpo.manifest import write_manifest
from mrpo.run_folder import RunFolder
from mrpo.run_reading import RunStatus, read_metrics
from mrpo.sft.__main__ import configure
from mrpo.sft.__main__ import main as sft_main
from mrpo.sft.heldout import HeldOutLoss, read_heldout, rewind_heldout, write_heldout
from mrpo.sft.job import plan_job
from mrpo.sft.order import Order
from mrpo.sft.settings import supervised
from mrpo.sft.targets import demonstrations_of
from mrpo.sft.trainer import SupervisedTrainer
from mrpo.steps import extract_answer, split_steps
from mrpo.train import configure as configure_training
from mrpo.types import Example, LearnStats, SftSample

QWEN = family_of("qwen2_5_vl")


def example(number: int, *, rationale: str | None = "The lung is dark. It holds air.", answer: str = "air") -> Example:
    return Example(
        id=f"q{number}",
        image=f"/images/{number}.png",
        question="What is dark?",
        answer=answer,
        rationale=rationale,
        dataset="tiny",
        split="train",
        license="CC0-1.0",
    )


# Texts


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_demonstration_has_the_asked_form(model_type: str) -> None:
    family = family_of(model_type)
    (shown,) = demonstrations_of([example(0)], family, DataKind.JSONL).samples
    tag = family.think_tag
    assert shown.target == f"<{tag}>The lung is dark. It holds air.</{tag}>\n<answer>air</answer>"
    assert (shown.image, shown.question) == ("/images/0.png", "What is dark?")
    assert [step.text for step in split_steps(shown.target, think_tag=tag)] == ["The lung is dark.", "It holds air."]
    assert extract_answer(shown.target) == "air"


def test_a_phantom_is_shown_as_its_warm_start_wrote_it() -> None:
    (shown,) = demonstrations_of([example(0)], QWEN, DataKind.PHANTOM).samples
    assert shown.target == "<think>The lung is dark. It holds air.</think><answer>air</answer>"
    assert shown.target == write_demonstration(
        "The lung is dark. It holds air.", "air", think_tag="think", separator=""
    )


def test_questions_without_rationale_are_counted() -> None:
    found = demonstrations_of([example(0), example(1, rationale=None), example(2, rationale=" ")], QWEN, DataKind.JSONL)
    assert [item.id for item in found.shown] == ["q0"]
    assert found.left_out("training") == "2 of 3 training questions have no rationale and are left out"
    assert demonstrations_of([example(0)], QWEN, DataKind.JSONL).left_out("training") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rationale": "It is <think>dark."}, "q7: its rationale holds '<think>'"),
        ({"rationale": "Dark.</ANSWER >"}, "q7: its rationale holds '</ANSWER >'"),
        ({"answer": "<answer>air"}, "q7: its answer holds '<answer>'"),
    ],
)
def test_tags_in_a_text_name_the_row(change: dict[str, str], words: str) -> None:
    with pytest.raises(DataError) as error:
        demonstrations_of([example(0), replace(example(7), **change)], QWEN, DataKind.JSONL)
    assert words in str(error.value)


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    dataset = Dataset(train=[example(0, rationale=None)], test=[], root=Path())
    with pytest.raises(DataError, match="none of the 1 training questions has a rationale"):
        plan_job(Config(), dataset, None)


# Order and schedule


def test_an_epoch_shows_everything_once_and_the_next_in_another_order() -> None:
    order = Order(num_examples=10, batch_size=4, num_epochs=3, seed=5)
    assert (order.steps_per_epoch, order.num_steps) == (3, 9)
    batches = [order.batch(step) for step in range(9)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[index for batch in batches[start : start + 3] for index in batch] for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [order.batch(step) for step in range(9)] == batches
    assert replace(order, seed=6).batch(0) != batches[0]
    assert replace(order, shuffle=False).batch(4) == [4, 5, 6, 7]
    assert [order.epochs_done(step) for step in (0, 1, 3, 8, 9)] == [0, None, 1, None, 3]


def test_the_rate_warms_up_over_its_share_and_falls_to_nothing() -> None:
    rates = [sft_lr(step, num_steps=10, peak=1.0, warmup_share=0.3) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[3:] == pytest.approx([7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert sft_lr(0, num_steps=10, peak=1.0, warmup_share=0.0) == 1.0
    assert sft_lr(9, num_steps=10, peak=1.0, warmup_share=1.0) == 1.0


# Settings


def test_the_papers_settings_are_the_defaults() -> None:
    sft = Config().sft
    assert (sft.lora.r, sft.lora.alpha, sft.lora.dropout, sft.lr, sft.num_epochs) == (8, 32.0, 0.05, 2e-5, 3)


@pytest.mark.parametrize("without", ["eval.after=false", "eval.judge=false"])
def test_no_judge_is_demanded_where_none_is_asked(without: str) -> None:
    config = configure(["experiment=internvl3", "data.root=/data", without])
    assert config.judge.kind == JudgeKind.NONE
    assert config.experiment == "internvl3_sft"


def test_a_judge_that_is_asked_is_demanded() -> None:
    with pytest.raises(ConfigError, match=r"judge\.url"):
        configure(["experiment=internvl3", "data.root=/data"])
    with pytest.raises(ConfigError, match=r"reward\.answer\.kind=judge needs a judge"):
        configure(["judge=none", "reward.answer.kind=judge"])


def test_settings_of_reinforcement_do_not_get_in_the_way() -> None:
    config = configure(["judge=none", "algorithm=process_supervision", "data.num_train=2", "data.num_test=2"])
    assert config.data.num_train == 2
    assert configure(["reward.answer.kind=judge", "eval.after=false"]).judge.kind == JudgeKind.NONE


def test_one_evaluation_is_made_unless_two_are_asked_for() -> None:
    assert (configure([]).eval.before, configure([]).eval.after) == (False, True)
    assert configure(["eval.before=true"]).eval.before
    with pytest.raises(ConfigError, match=r"eval\.every_steps=5: supervised training evaluates before and after"):
        configure(["eval.every_steps=5"])


def test_data_without_rationales_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.kind=vqa_rad carries no gold rationales"):
        configure(["experiment=vqa_rad_smoke", "data.root=/data"])


def test_a_phantom_is_trained_in_full() -> None:
    config = configure([])
    assert (config.experiment, config.sft.lora.r) == ("phantom_sft", 0)
    assert supervised(config) == config


def test_each_command_goes_on_with_its_own_runs(tmp_path: Path) -> None:
    for experiment in ("phantom", "phantom_sft"):
        RunFolder.create(tmp_path, experiment, plain(replace(compose_config([]), experiment=experiment))).close()
    (plain_run,), (sft_run,) = (list((tmp_path / name).iterdir()) for name in ("phantom", "phantom_sft"))
    with pytest.raises(ConfigError, match="is no supervised run; go on with: make train"):
        configure([f"resume={plain_run}"])
    with pytest.raises(ConfigError, match="is a supervised run; go on with: make sft"):
        configure_training([f"resume={sft_run}"])
    assert configure([f"resume={sft_run}", "sft.num_epochs=5"]).sft.num_epochs == 5
    with pytest.raises(ConfigError, match=r"sft\.batch_size=8 cannot change"):
        configure([f"resume={sft_run}", "sft.batch_size=8"])
    with RunFolder.open(sft_run) as run:
        run.set_status(RunStatus.FINISHED)
    assert configure([f"runs_dir={sft_run.parent.parent}", "resume=auto"]).resume is None, "a new one begins"


# What a newcomer meets, before Ray or an engine starts


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray is what must not happen."""
    import ray

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)


def rows(folder: Path, change: Mapping[str, object]) -> Path:
    """A data root of two splits whose last row is changed."""
    Image.new("RGB", (84, 84)).save(folder / "a.png")
    row = {"image": "a.png", "question": "Which side?", "answer": "left", "rationale": "It is left."}
    row |= {"dataset": "tiny", "split": "train", "license": "CC0-1.0"}
    made = [{"id": f"q{number}", **row} for number in range(4)]
    made[-1].update(change)  # type: ignore[arg-type]
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text("\n".join(json.dumps(item) for item in made))
    return folder


@pytest.mark.parametrize(
    ("change", "overrides", "words"),
    [
        ({"rationale": "A <think>tag."}, [], "q3: its rationale holds '<think>'"),
        ({"rationale": "A <|image_pad|>."}, [], "q3: its text holds the special token <|image_pad|>"),
        ({"question": "Is <|im_end|> it?"}, [], "q3: its text holds the special token <|im_end|>"),
        ({"rationale": "Long. " * 99}, ["learner.tokens_per_micro_batch=150"], "tokens_per_micro_batch=150: q3: "),
    ],
)
@pytest.mark.usefixtures("no_ray")
def test_a_bad_row_ends_in_one_line(
    change: dict[str, object],
    overrides: list[str],
    words: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
) -> None:
    root = rows(tmp_path, change)
    places = [f"data.root={root}", f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path_factory.getbasetemp()}/sft"]
    small = ["model.warm_start.num_scans=8", "cluster.min_free_memory_gib=0.5", "eval.after=false"]
    assert sft_main(["data=jsonl", *places, *small, *overrides]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert not list((tmp_path / "runs").glob("*/*/config.yaml")), "no run folder is left"


# The loop


class FakeLearner:
    """Counts; its loss falls by one a step."""

    def __init__(self, num_done: int = 0) -> None:
        self.num_done = num_done
        self.copied = num_done
        self.shown: list[list[str]] = []
        self.lost_at: list[int] = []  # calls of `sft_step` in which it is lost, counted from 1
        self.refused_at = 0  # the call whose update it refuses
        self.num_calls = 0
        self.measured: list[int] = []

    async def sft_step(
        self, examples: Sequence[SftSample], *, num_steps: int, lr: float, warmup_share: float
    ) -> LearnStats:
        self.num_calls += 1
        if self.num_calls in self.lost_at:
            raise LearnerLostError("learner-0 died during sft_step", "learner-0")
        if self.num_calls == self.refused_at:
            raise NonFiniteError("the update was not applied: the gradient is not finite")
        self.shown.append([item.question for item in examples])
        self.num_done += 1
        rate = sft_lr(self.num_done - 1, num_steps=num_steps, peak=lr, warmup_share=warmup_share)
        return LearnStats(
            loss=10.0 - self.num_done, kl=0.0, clip_share=0.0, entropy=0.0, grad_norm=1.0, lr=rate,
            num_tokens=len(examples), num_micro_batches=1, seconds=0.1,
        )  # fmt: skip

    async def sft_loss(self, examples: Sequence[SftSample]) -> tuple[float, int]:
        self.measured.append(len(examples))
        return 2.0 * len(examples), 4 * len(examples)

    async def restart(self) -> None:
        self.num_done = 0

    async def load(self, folder: str) -> None:
        self.num_done = int((Path(folder) / "done").read_text())

    async def save(self, folder: str) -> None:
        (Path(folder) / "done").write_text(str(self.num_done))
        write_manifest(Path(folder))

    async def snapshot(self) -> None:
        self.copied = self.num_done

    async def write(self, folder: str) -> None:
        await asyncio.sleep(0)
        (Path(folder) / "done").write_text(str(self.copied))
        write_manifest(Path(folder))


class Watching:
    """Sets `stop` after a step."""

    def __init__(self, stop: asyncio.Event, after: int) -> None:
        self.stop, self.after = stop, after

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.after:
            self.stop.set()


SAMPLES = [SftSample(image="a", question=str(number), target="t") for number in range(5)]


@contextmanager
def trainer(runs: Path, *, stop_after: int = -1, step: int = 0, run: RunFolder | None = None) -> Iterator[object]:
    config = replace(Config(), experiment="phantom_sft")
    config = replace(config, checkpoint=replace(config.checkpoint, every_steps=2, keep_last=9))
    run = run or RunFolder.create(runs, "phantom_sft", plain(config))
    stop, learner = asyncio.Event(), FakeLearner(step)
    with run:
        yield SupervisedTrainer(
            config=config,
            order=Order(num_examples=5, batch_size=2, num_epochs=2, seed=0),
            train=SAMPLES,
            held_out=SAMPLES * 20,
            learner=learner,
            recorder=run,
            watchers=[Watching(stop, stop_after)],
            on_held_out=lambda found: None,
            stop=stop,
            step=step,
        )


def test_the_loop_measures_every_epoch_and_saves_on_the_way_and_at_the_end(tmp_path: Path) -> None:
    with trainer(tmp_path) as found:
        assert isinstance(found, SupervisedTrainer)
        asyncio.run(found.run())
        run = found.recorder
        assert isinstance(run, RunFolder)
        assert [(item.step, item.epoch, item.loss, item.num_examples) for item in read_heldout(run.path)] == [
            (0, 0, 0.5, 100), (3, 1, 0.5, 100), (6, 2, 0.5, 100),
        ]  # fmt: skip
        assert sorted(item.name for item in (run.path / "checkpoints").iterdir()) == ["step_2", "step_4", "step_6"]
        lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
        assert [line["sft/loss"] for line in lines] == [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
        assert lines[2]["sft/epoch"] == 1.0


@pytest.mark.parametrize("after", [1, 3])
def test_a_stop_leaves_a_checkpoint_from_which_the_rest_is_the_same(after: int, tmp_path: Path) -> None:
    with trainer(tmp_path / "whole") as whole:
        assert isinstance(whole, SupervisedTrainer)
        asyncio.run(whole.run())
    with trainer(tmp_path, stop_after=after) as first:
        assert isinstance(first, SupervisedTrainer)
        with pytest.raises(StopRequested, match=f"after {after} of 6 steps"):
            asyncio.run(first.run())
        run = first.recorder
        assert isinstance(run, RunFolder)
        assert (run.path / "checkpoints" / f"step_{after}" / "done").read_text() == str(after)
        path = run.path
    # At the epoch's end its held-out loss was not measured any more; going on makes up for it.
    assert [item.step for item in read_heldout(path)] == [0]
    with trainer(tmp_path, step=after, run=RunFolder.open(path)) as second:
        assert isinstance(second, SupervisedTrainer)
        asyncio.run(second.run())
    assert isinstance(whole.learner, FakeLearner)
    assert isinstance(first.learner, FakeLearner) and isinstance(second.learner, FakeLearner)
    assert first.learner.shown + second.learner.shown == whole.learner.shown
    assert [item.step for item in read_heldout(path)] == [0, 3, 6]


def test_held_out_losses_after_a_checkpoint_are_forgotten(tmp_path: Path) -> None:
    measured = [HeldOutLoss(step=s, epoch=s // 3, loss=1.0, num_tokens=4, num_examples=1) for s in (0, 3, 6)]
    write_heldout(tmp_path, measured)
    rewind_heldout(tmp_path, 4)
    assert read_heldout(tmp_path) == measured[:2]
    (tmp_path / "heldout.json").write_text("[{}")
    with pytest.raises(DataError, match=r"heldout\.json is damaged"):
        read_heldout(tmp_path)


def test_a_lost_learner_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Lost before the first checkpoint, and after it: the record is that of a run in which nothing was lost."""
    records = []
    for name, lost_at in (("whole", []), ("lost", [2, 5])):
        with trainer(tmp_path / name) as found:
            assert isinstance(found, SupervisedTrainer) and isinstance(found.learner, FakeLearner)
            found.learner.lost_at = lost_at
            told: list[int] = []
            found.progress = told.append
            asyncio.run(found.run())
            assert (told[0], len(told)) == (0, 1 + len(lost_at)), "at the start and after each rewind"
            rows = [(row["step"], row["sft/loss"], row["policy/lr"]) for row in read_metrics(found.recorder.path).rows]
            records.append((rows, [(item.step, item.epoch) for item in read_heldout(found.recorder.path)]))
            assert found.learner.num_done == 6
    assert records[0] == records[1]


def test_a_step_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with trainer(tmp_path) as found:
        assert isinstance(found, SupervisedTrainer) and isinstance(found.learner, FakeLearner)
        found.learner.refused_at = 3
        with pytest.raises(NonFiniteError, match=r"^step 3: the update was not applied: the gradient is not finite"):
            asyncio.run(found.run())


def test_a_step_that_is_not_on_record_is_in_no_checkpoint_and_is_done_again(tmp_path: Path) -> None:
    """/dev/full takes nothing, as a full disk; the checkpoints are on another."""
    with trainer(tmp_path) as found:
        assert isinstance(found, SupervisedTrainer)
        run, aside = found.recorder, tmp_path / "lines"
        assert isinstance(run, RunFolder)

        class FillingTheDisk:
            def step(self, step: int, metrics: Mapping[str, float]) -> None:
                if step == 4:
                    run._close_metrics()
                    run.metrics_path.rename(aside)
                    run.metrics_path.symlink_to("/dev/full")

        found.watchers = [FillingTheDisk()]
        with pytest.raises(ResourceError, match="the run ends here, because its record would have a hole"):
            asyncio.run(found.run())
        assert (found.step, run.step) == (5, 4)
        assert sorted(item.name for item in (run.path / "checkpoints").iterdir()) == ["step_2", "step_4"]
    run.metrics_path.unlink()
    aside.rename(run.metrics_path)
    with trainer(tmp_path, step=4, run=RunFolder.open(run.path)) as again:
        assert isinstance(again, SupervisedTrainer)
        asyncio.run(again.run())
        assert [row["step"] for row in read_metrics(run.path).rows] == [1, 2, 3, 4, 5, 6]


def test_a_stop_while_the_learner_starts_again_saves_nothing(tmp_path: Path) -> None:
    with trainer(tmp_path) as found:
        assert isinstance(found, SupervisedTrainer) and isinstance(found.learner, FakeLearner)
        learner, stop = found.learner, found.stop
        learner.lost_at = [4]

        async def restart() -> None:
            stop.set()
            await asyncio.sleep(60.0)

        learner.restart = restart  # type: ignore[method-assign]
        with pytest.raises(StopRequested, match="stopped after 3 of 6 steps"):
            asyncio.run(asyncio.wait_for(found.run(), 30.0))
        run = found.recorder
        assert isinstance(run, RunFolder)
        saved = {item.name for item in (run.path / "checkpoints").iterdir()}
        assert saved <= {"step_2"}, "what it holds is not the steps done"
