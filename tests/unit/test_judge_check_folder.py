"""What a check of a judge keeps on disk, and what it asks again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo.calibration.folder import CheckFolder, differences, read_earlier
from mrpo.calibration.rulings import RecordedJudge, RulingFile, read_rulings
from mrpo.errors import ConfigError, DataError
from mrpo.types import (
    FailureReason,
    JudgeFailure,
    Judgement,
    JudgeRequest,
    Verdicts,
)
from tests.unit.checked_judges import FunctionJudge, check, labelled, verdicts

REQUEST = JudgeRequest(key="k", image="", question="q", answer="a", rationale="r", steps=["s"])


def exact_or_no(request: JudgeRequest) -> Verdicts:
    return verdicts(*([0] * len(request.steps)))


def test_rulings_on_disk_are_not_asked_again_and_failures_are(tmp_path: Path) -> None:
    completions = [labelled(1, 0, id="a"), labelled(1, id="ä")]
    file = RulingFile(tmp_path / "rulings.jsonl")
    failing = FunctionJudge(
        lambda request: (
            verdicts(1, 0) if request.key == "a#0" else JudgeFailure(reason=FailureReason.BAD_JSON, detail="'{'")
        )
    )
    check(RecordedJudge(failing, file), completions, repeats=1, orders=0)
    file.close()
    with (tmp_path / "rulings.jsonl").open("ab") as torn:
        torn.write(b'{"key": "a#0", "align')
    again = RulingFile(tmp_path / "rulings.jsonl")
    judge = FunctionJudge(lambda request: verdicts(0))
    found, _ = check(RecordedJudge(judge, again), completions, repeats=1, orders=0)
    again.close()
    assert judge.num_calls == 1
    assert found.marks[0].table == [[1, 0], [1, 1]]
    rulings = read_rulings(tmp_path / "rulings.jsonl")
    assert rulings["a#0"].outcome == verdicts(1, 0)
    assert (rulings["ä#0"].outcome, rulings["ä#0"].sent_s, rulings["ä#0"].prompt_tokens) == (verdicts(0), 2.0, 10)
    assert len((tmp_path / "rulings.jsonl").read_text().splitlines()) == 3


def test_what_is_too_long_to_be_sent_is_not_asked_again(tmp_path: Path) -> None:
    """Without a pool, whose start takes a server; a wrong count that was replied is asked again."""
    path = tmp_path / "rulings.jsonl"
    failed = Judgement(
        key="k",
        outcome=JudgeFailure(reason=FailureReason.WRONG_COUNT, detail="it was not sent"),
        started_s=1.0,
        ended_s=1.0,
        attempts=0,
    )
    for judgement, final in ((failed, True), (replace(failed, attempts=1), False)):
        file = RulingFile(path)
        file.add(judgement)
        file.close()
        again = RulingFile(path)
        assert again.is_final("k") == final
        if final:
            assert asyncio.run(RecordedJudge(None, again).judge(REQUEST)) == failed
        again.close()


def test_a_damaged_ruling_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rulings.jsonl"
    file.write_text('{"key": "a", "alignment": [1], "contribution": [1, 0]}\n')
    with pytest.raises(DataError, match="line 1 is damaged"):
        read_rulings(file)
    assert read_rulings(tmp_path / "none.jsonl") == {}


def test_a_folder_holds_one_check(tmp_path: Path) -> None:
    identity = {"name": "x", "labels": "d", "judge": {"model": "m", "step_rubric": "1"}}
    with CheckFolder.open(tmp_path / "out", identity) as folder:
        folder.rulings.add(asyncio.run(FunctionJudge(exact_or_no).judge(REQUEST)))
    with CheckFolder.open(tmp_path / "out", {**identity, "name": "another name"}) as folder:
        assert folder.rulings.is_final("k")
    other = {**identity, "judge": {"model": "m", "step_rubric": "2"}}
    with pytest.raises(ConfigError, match="another judge step_rubric: '2', was '1'"):
        CheckFolder.open(tmp_path / "out", other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="no folder of a judge check"):
        CheckFolder.open(tmp_path / "full", identity)
    assert read_earlier(tmp_path / "out", "d").rulings.keys() == {"k"}
    with pytest.raises(ConfigError, match="other labels"):
        read_earlier(tmp_path / "out", "e")
    with pytest.raises(ConfigError, match=r"no check\.json there"):
        read_earlier(tmp_path / "full", "d")
    assert differences(identity, other) == ["judge step_rubric: '2', was '1'"]
