"""What a newcomer meets: one line with the remedy, exit code 2, before Ray or an engine starts."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mrpo.compose import compose_config
from mrpo.config import plain
from mrpo.run_folder import RunFolder
from mrpo.train import configure, main


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Starting Ray is what must not happen."""
    import ray

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)
    yield


def jsonl_folder(folder: Path, image_bytes: bytes | None = None) -> Path:
    """A data root with one image and eight questions in the internal format."""
    if image_bytes is None:
        Image.new("RGB", (84, 84)).save(folder / "a.png")
    else:
        (folder / "a.png").write_bytes(image_bytes)
    row = {"image": "a.png", "question": "Which side?", "answer": "left", "rationale": "It is left."}
    row |= {"dataset": "tiny", "split": "train", "license": "CC0-1.0"}
    lines = [json.dumps({"id": f"q{number}", **row}) for number in range(8)]
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text("\n".join(lines))
    return folder


def closed_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def expect_error(capfd: pytest.CaptureFixture[str], arguments: list[str], *words: str) -> None:
    """Run the command; it must end with code 2 and exactly one line that holds the words."""
    assert main(arguments) == 2
    shown = capfd.readouterr().err.strip()
    assert shown.startswith("error: ")
    assert "\n" not in shown
    for word in words:
        assert word in shown


def test_no_such_experiment(capfd: pytest.CaptureFixture[str]) -> None:
    expect_error(capfd, ["experiment=phantm"], "phantm", "did you mean 'phantom'", "vqa_rad_smoke", "internvl3")


def test_typo_in_an_override(capfd: pytest.CaptureFixture[str]) -> None:
    expect_error(capfd, ["learner.learning_rate=1e-5"], "unknown setting 'learner.learning_rate'")


def test_wrong_type(capfd: pytest.CaptureFixture[str]) -> None:
    expect_error(capfd, ["rollout.group_size=many"], "rollout.group_size='many'", "integer")


def test_missing_data_root(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["experiment=vqa_rad_smoke", f"data.root={tmp_path}/nowhere", f"runs_dir={tmp_path}"]
    expect_error(capfd, arguments, "data.root", "nowhere", "is not a folder")


def test_unreadable_image(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = jsonl_folder(tmp_path, image_bytes=b"this is no picture")
    arguments = ["data=jsonl", "judge=none", f"data.root={root}", f"runs_dir={tmp_path}"]
    expect_error(capfd, arguments, "train.jsonl, row 1", "a.png", "cannot be read", "data.max_bad_rows")


def test_unreachable_judge(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    root = jsonl_folder(tmp_path)
    arguments = ["data=jsonl", "judge=openai_compatible", f"judge.url={url}", "judge.model=m"]
    expect_error(capfd, [*arguments, f"data.root={root}", f"runs_dir={tmp_path}"], url, "judge.url")


@pytest.mark.parametrize("placement", ["in_process", "actor"])
def test_missing_encoder_of_answers(placement: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["reward.answer.kind=mixed", f"reward.answer.bertscore.model={tmp_path}/no_encoder"]
    arguments += [f"reward.answer.bertscore.placement={placement}", f"runs_dir={tmp_path}"]
    expect_error(capfd, arguments, "reward.answer.bertscore.model=", "no_encoder", "its folder")


def test_not_enough_memory(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["cluster.min_free_memory_gib=100000", f"runs_dir={tmp_path}"]
    expect_error(capfd, arguments, "GiB of memory", "cluster.min_free_memory_gib")


def test_not_enough_gpus(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    root = jsonl_folder(tmp_path)
    arguments = ["experiment=internvl3", f"data.root={root}", "judge.url=http://127.0.0.1:1/v1", "judge.model=m"]
    expect_error(capfd, [*arguments, f"runs_dir={tmp_path}"], "internvl3 needs 4 GPUs", "has 1", "EXP=phantom")


def test_run_folder_not_writable(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    expect_error(capfd, [f"runs_dir={tmp_path}/file/runs"], "cannot write to", "runs_dir")


def test_nothing_to_resume(capfd: pytest.CaptureFixture[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert configure(["resume=auto", f"runs_dir={tmp_path}"]).resume is None
    assert f"there is no unfinished run under {tmp_path}/phantom, so a new one begins" in caplog.text
    capfd.readouterr()
    expect_error(capfd, [f"resume={tmp_path}/none", f"runs_dir={tmp_path}"], "no config.yaml")


def test_a_run_of_an_earlier_version(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "phantom", plain(compose_config([]))) as run, run.checkpoint(1):
        pass
    state = json.loads((run.path / "state.json").read_text())
    del state["format"]
    (run.path / "state.json").write_text(json.dumps(state))
    expect_error(capfd, [f"resume={run.path}"], "an earlier version of mrpo", "start a new run, or resume it with")


def test_what_a_resumed_run_cannot_take(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "phantom", plain(compose_config([]))) as run:
        pass
    expect_error(capfd, [f"resume={run.path}", "algorithm.shaping=none"], "algorithm.shaping=none cannot change")


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_no_model_at_its_path(content: str | None, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    if content is not None:
        (tmp_path / "model" / "config.json").write_text(content)
    expect_error(capfd, [f"model.path={tmp_path}/model", f"runs_dir={tmp_path}"], "config.json", "model.path")


def test_custom_code_checkpoint(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "internvl_chat"}')
    command = f"make convert MODEL={tmp_path} OUT={tmp_path}-native"
    expect_error(capfd, [f"model.path={tmp_path}", f"runs_dir={tmp_path}"], "internvl_chat", command)


def test_no_network_for_a_hub_id(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = ["model.path=nobody/no-such-model", f"runs_dir={tmp_path}"]
    expect_error(capfd, arguments, "model.path=nobody/no-such-model", "set model.path=<folder>")
