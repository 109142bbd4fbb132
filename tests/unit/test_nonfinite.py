"""Two steps in a row that are not finite end a run, also where it was killed or rewound between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mrpo.errors import NonFiniteError
from mrpo.faults import FaultLog
from mrpo.nonfinite import SkippedSteps
from mrpo.run_folder import RunFolder
from mrpo.run_reading import read_state
from mrpo.scoring import ScoredTrace
from tests.unit.synthetic_run import config_tree, draw_images, training_traces

ERROR = NonFiniteError("the loss is nan")


@pytest.fixture
def traces(tmp_path: Path) -> Sequence[ScoredTrace]:
    return training_traces(1, 40, draw_images(tmp_path / "images"))


def of(run: RunFolder) -> SkippedSteps:
    return SkippedSteps(recorder=run, faults=FaultLog(None))


def until_skipped(folder: Path, traces: Sequence[ScoredTrace]) -> RunFolder:
    """A run of three steps whose third was skipped."""
    run = RunFolder.create(folder, "demo", config_tree())
    for step in (1, 2):
        run.log_metrics(step, {})
    of(run).skip(ERROR, 3, traces)
    run.log_metrics(3, {})
    return run


def resumed(run: RunFolder, step: int) -> RunFolder:
    """What the next process does; closing stands for the death of the one before."""
    run.close()
    again = RunFolder.open(run.path)
    again.rewind(step)
    return again


def test_a_resume_between_two_of_them_hides_nothing(tmp_path: Path, traces: Sequence[ScoredTrace]) -> None:
    run = resumed(until_skipped(tmp_path, traces), 3)
    with pytest.raises(
        NonFiniteError, match=r"two steps in a row .* weights are those of step 2: step 4: the loss is nan"
    ):
        of(run).skip(ERROR, 4, traces)
    run.close()


def test_one_that_is_finite_when_it_is_done_again_counts_no_more(tmp_path: Path, traces: Sequence[ScoredTrace]) -> None:
    run = until_skipped(tmp_path, traces)
    skipped = of(run)
    run.rewind(2)  # in the same process
    skipped.applied()  # the third
    run.log_metrics(3, {})
    skipped.skip(ERROR, 4, traces)
    assert read_state(run.path).skipped_steps == (4,)
    run.log_metrics(4, {})
    again = resumed(run, 2)
    again.log_metrics(3, {})
    of(again).skip(ERROR, 4, traces)
    again.close()


def test_going_back_to_one_that_was_skipped_remembers_it(tmp_path: Path, traces: Sequence[ScoredTrace]) -> None:
    run = until_skipped(tmp_path, traces)
    skipped = of(run)
    skipped.applied()  # the fourth
    run.log_metrics(4, {})
    run.rewind(3)
    with pytest.raises(NonFiniteError, match="two steps in a row"):
        skipped.skip(ERROR, 4, traces)
    run.close()
