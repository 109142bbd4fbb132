"""What `resume=auto` takes, for one command that is given again and again: never another command's run."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest

from mrpo import resumable
from mrpo.command_line import exit_code
from mrpo.compose import compose_config, resume_config
from mrpo.config import Config, plain
from mrpo.errors import ConfigError, DataError, NothingToDoError, ResourceError
from mrpo.resumable import resumed_run
from mrpo.run_folder import RunFolder
from mrpo.run_reading import RunStatus
from mrpo.train import configure


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "POLL_S", 0.01)


def new(runs: Path, name: str | None = None, *, ended: RunStatus | None = None) -> RunFolder:
    """A run, closed where it has ended."""
    run = RunFolder.create(runs, "demo", plain(Config()), name=name)
    if ended is not None:
        run.set_status(ended)
        run.close()
    return run


def auto(runs: Path, name: str | None = None, *, held_s: float = 0.0) -> Path | None:
    return resumed_run("auto", runs, "demo", name, held_s=held_s)


def damage(run: RunFolder) -> None:
    (run.path / "state.json").write_text("{")


# Without a name


def test_the_newest_run_is_gone_on_with_when_it_is_unfinished(tmp_path: Path) -> None:
    new(tmp_path, ended=RunStatus.INTERRUPTED)
    killed = new(tmp_path)
    killed.close()
    assert auto(tmp_path) == killed.path, "also before its first checkpoint"


def test_an_older_run_is_never_picked_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    new(tmp_path, ended=RunStatus.INTERRUPTED)
    newest = new(tmp_path, ended=RunStatus.FINISHED)
    assert auto(tmp_path) is None
    assert f"whose newest, {newest.path.name}, is finished, so a new one begins" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


def test_where_there_is_none_a_new_one_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert auto(tmp_path) is None
    assert f"there is no unfinished run under {tmp_path}/demo, so a new one begins" in caplog.text


def test_a_run_in_other_hands_is_waited_for_and_never_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = new(tmp_path, ended=RunStatus.INTERRUPTED)
    held = new(tmp_path)
    with pytest.raises(ResourceError, match=rf"{held.path} is still being written by process \d+ on .* after 0\.05 s"):
        auto(tmp_path, held_s=0.05)
    assert caplog.text.count("waiting up to 0.05 s") == 1
    threading.Timer(0.1, held.close).start()
    assert auto(tmp_path, held_s=60.0) == held.path != older.path


def test_a_run_that_finishes_while_it_is_waited_for_is_finished(tmp_path: Path) -> None:
    held = new(tmp_path, "a")
    threading.Timer(0.1, held.set_status, [RunStatus.FINISHED]).start()
    with pytest.raises(NothingToDoError):
        auto(tmp_path, "a", held_s=60.0)
    held.close()


def test_a_damaged_newest_run_is_an_error_and_an_older_one_is_not(tmp_path: Path) -> None:
    older, newest = new(tmp_path, ended=RunStatus.INTERRUPTED), new(tmp_path, ended=RunStatus.INTERRUPTED)
    damage(newest)
    with pytest.raises(DataError, match=rf"{newest.path}/state\.json is damaged"):
        auto(tmp_path)
    (newest.path / "state.json").unlink()
    with pytest.raises(DataError, match=r"state\.json: No such file"):
        auto(tmp_path)
    damage(older)
    last = new(tmp_path, ended=RunStatus.INTERRUPTED)
    assert auto(tmp_path) == last.path


def test_a_newest_run_of_another_format_is_an_error(tmp_path: Path) -> None:
    new(tmp_path, ended=RunStatus.INTERRUPTED)
    run = new(tmp_path, ended=RunStatus.INTERRUPTED)
    state = json.loads((run.path / "state.json").read_text())
    (run.path / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(DataError, match="a later version"):
        auto(tmp_path)


def test_a_folder_without_a_record_is_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = new(tmp_path, ended=RunStatus.INTERRUPTED)
    (tmp_path / "demo" / "zzz").mkdir()
    assert auto(tmp_path) == run.path
    assert f"passed over: {tmp_path}/demo/zzz has no record of a run" in caplog.text


# With a name


def test_a_name_means_that_run_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine = new(tmp_path, "slurm-1", ended=RunStatus.INTERRUPTED)
    new(tmp_path, "slurm-2", ended=RunStatus.INTERRUPTED)
    assert auto(tmp_path, "slurm-1") == mine.path
    assert auto(tmp_path, "slurm-3") is None
    assert f"there is no run {tmp_path}/demo/slurm-3 yet, so it begins" in caplog.text


def test_a_name_whose_folder_was_not_finished_begins(tmp_path: Path) -> None:
    run = new(tmp_path, "a", ended=RunStatus.INTERRUPTED)
    for file in ("state.json", "events.log"):
        (run.path / file).unlink()
    assert auto(tmp_path, "a") is None
    new(tmp_path, "a").close()


def test_a_finished_run_of_that_name_leaves_nothing_to_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = new(tmp_path, "a", ended=RunStatus.FINISHED)

    def command() -> int:
        auto(tmp_path, "a")
        return 1

    assert exit_code(command) == 0
    said = capfd.readouterr().err
    assert said.startswith(f"{run.path} is finished") and "nothing is left to do" in said and "error" not in said


def test_what_is_wrong_with_the_run_of_that_name_is_said(tmp_path: Path) -> None:
    run = new(tmp_path, "a")
    with pytest.raises(ResourceError, match="still being written"):
        auto(tmp_path, "a")
    damage(run)
    with pytest.raises(DataError, match="is damaged"):
        auto(tmp_path, "a")


# In a command


def begin(config: Config) -> Path:
    with RunFolder.create(config.runs_dir, config.experiment, plain(config), name=config.run_name) as run:
        return run.path


def test_the_same_command_begins_and_goes_on(tmp_path: Path) -> None:
    command = [
        "experiment=phantom",
        "judge=none",
        "algorithm=grpo",
        f"runs_dir={tmp_path}",
        "run_name=a",
        "resume=auto",
    ]
    first = configure(command)
    assert (first.resume, first.run_name) == (None, "a")
    folder = begin(first)
    again = configure(command)
    assert (again.resume, again.run_name) == (str(folder), "a")
    assert configure([*command[:-2], "run_name=b", "resume=auto"]).resume is None


def test_a_name_is_no_path(tmp_path: Path) -> None:
    for name in ("../a", "a/b", ".a", "''"):
        with pytest.raises(ConfigError, match=r"run_name=.* names a folder"):
            compose_config([f"run_name={name}"])


def test_two_runs_are_not_named_at_once(tmp_path: Path) -> None:
    folder = begin(compose_config([f"runs_dir={tmp_path}", "run_name=a"]))
    assert resume_config(folder, ["run_name=a"]) == resume_config(folder, [])
    with pytest.raises(ConfigError, match=r"run_name=b and resume=.*/a name two runs"):
        resume_config(folder, ["run_name=b"])
