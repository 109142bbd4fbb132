"""What a learner leaves on disk, and coming back from it."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import json
import resource
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file

from learner import checkpoint, hf_folder
from learner.background_write import BackgroundWrite
from learner.checkpoint import load, save, snapshot, write
from learner.disk import checkpoint_bytes, require_room
from learner.step import score, train_step
from mrpo.config import LoraConfig, LossConfig
from mrpo.errors import DataError, ResourceError
from mrpo.families import family_of
from mrpo.manifest import check_manifest, write_manifest
from tests.integration.learner_world import FAMILIES, build_world, completions, make, spec, to_score


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learner")
    build_world(folder)
    return folder


@pytest.fixture
def saved(world: Path, tmp_path: Path) -> Path:
    """A checkpoint after two steps."""
    rank = make(spec(world))
    for number in range(2):
        train_step(rank, completions(world, seed=number), progress=0.0)
    save(rank, tmp_path)
    return tmp_path


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_resumed_run_continues_bit_for_bit(world: Path, tmp_path: Path, stage: int) -> None:
    settings = spec(world, zero_stage=stage, warmup_steps=3, weight_decay=0.1)
    batches = [completions(world, seed=seed) for seed in range(4)]
    first = make(settings)
    for number in range(2):
        train_step(first, batches[number], progress=0.1 * number)
    save(first, tmp_path)
    torch.manual_seed(99)
    second = make(settings)
    load(second, tmp_path)
    for number in range(2, 4):
        expected = train_step(first, batches[number], progress=0.1 * number)
        found = train_step(second, batches[number], progress=0.1 * number)
        assert (found.loss, found.grad_norm, found.kl, found.lr) == (
            expected.loss,
            expected.grad_norm,
            expected.kl,
            expected.lr,
        )
    for (name, mine), (_, other) in zip(second.source, first.source, strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize(("stage", "lora", "beta"), [(0, 0, 0.0), (2, 0, 0.1), (3, 0, 0.1), (2, 4, 0.1), (3, 4, 0.0)])
def test_a_snapshot_is_what_save_writes_and_later_steps_leave_it_alone(
    world: Path, tmp_path: Path, stage: int, lora: int, beta: float
) -> None:
    rank = make(spec(world, zero_stage=stage, lora=LoraConfig(r=lora, dropout=0.1), loss=LossConfig(beta=beta)))
    train_step(rank, completions(world, seed=0), progress=0.0)
    for name in ("saved", "written"):
        (tmp_path / name).mkdir()
    save(rank, tmp_path / "saved")
    contents = snapshot(rank)
    assert contents is not None
    train_step(rank, completions(world, seed=1), progress=0.1)
    write(contents, tmp_path / "written")
    expected, found = (
        {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for folder in (tmp_path / "saved", tmp_path / "written")
    )
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    check_manifest(tmp_path / "written")
    assert ("adapter/adapter_model.safetensors" in map(str, expected)) == (lora > 0)


def test_a_snapshot_is_not_taken_beside_one_whose_write_goes_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk hangs at the last file of the first checkpoint."""
    rank, background, disk_answers = make(spec(world)), BackgroundWrite(), threading.Event()

    def hang(folder: Path, known: dict[str, str]) -> None:
        assert disk_answers.wait(60.0)
        write_manifest(folder, known)

    monkeypatch.setattr(checkpoint, "write_manifest", hang)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    background.take(rank, wait_s=0.0)
    writer = threading.Thread(target=background.write, args=(tmp_path / "first",))
    writer.start()
    while not (tmp_path / "first" / "hf").exists():
        writer.join(0.01)
    with pytest.raises(ResourceError, match=r"the one before is still being written 0 s after that was given up"):
        background.take(rank, wait_s=0.05)
    train_step(rank, completions(world), progress=0.0)  # the rank itself goes on
    disk_answers.set()
    background.take(rank, wait_s=60.0)  # as soon as the writer has ended
    background.write(tmp_path / "second")
    writer.join()
    check_manifest(tmp_path / "first")
    check_manifest(tmp_path / "second")


def test_frozen_weights_in_main_memory_are_not_copied(world: Path, tmp_path: Path) -> None:
    rank = make(spec(world, freeze_vision_tower=True, loss=LossConfig(beta=0.1)))
    contents = snapshot(rank)
    assert contents is not None
    frozen = {p.data_ptr() for p in rank.model.parameters() if not p.requires_grad}
    trained = {p.data_ptr() for p in rank.model.parameters() if p.requires_grad}
    reference = {p.data_ptr() for p in rank.reference.model.parameters()}
    held = {tensor.data_ptr() for _, tensor in contents.hf_weights}
    assert frozen <= held and not held & trained
    assert {tensor.data_ptr() for _, tensor in contents.parts["reference"]} == reference


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_another_stage_resumes_from_it(world: Path, saved: Path, stage: int) -> None:
    losses = []
    for settings in (spec(world), spec(world, zero_stage=stage)):
        rank = make(settings)
        load(rank, saved)
        losses += [train_step(rank, completions(world, seed=5), progress=0.5).loss for _ in range(2)]
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-5)


def test_bfloat16_keeps_its_float32_master_weights(world: Path, tmp_path: Path) -> None:
    settings = spec(world, dtype="bfloat16")
    first = make(settings)
    train_step(first, completions(world), progress=0.0)
    save(first, tmp_path)
    masters = load_file(tmp_path / "learner" / "weights-00001.safetensors")
    assert any(not torch.equal(master, master.bfloat16().float()) for master in masters.values())
    second = make(settings)
    load(second, tmp_path)
    expected, found = (train_step(rank, completions(world, seed=3), progress=0.0) for rank in (first, second))
    assert found.loss == expected.loss and found.grad_norm == expected.grad_norm


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hf_folder_is_what_save_pretrained_writes(world: Path, tmp_path: Path, family: str) -> None:
    """Names, values, and log-probs of the model that transformers loads from it."""
    rank = make(spec(world, family, zero_stage=3))
    train_step(rank, completions(world, family), progress=0.0)
    save(rank, tmp_path)
    row = family_of(family)
    model_class = getattr(transformers, row.model_class)
    loaded = model_class.from_pretrained(tmp_path / "hf")
    loaded.save_pretrained(tmp_path / "again")
    ours, theirs = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "again"))
    assert ours.keys() == theirs.keys() == load_file(world / family / "model.safetensors").keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    sample = completions(world, family)[0]
    ids = torch.tensor([sample.prompt_token_ids + sample.completion_token_ids])
    processor = getattr(transformers, row.processor_class).from_pretrained(tmp_path / "hf")
    assert processor.tokenizer.decode(ids[0]) == rank.processor.tokenizer.decode(ids[0])
    pixels = rank.images.get([sample.image])[sample.image].tensors
    types = {"mm_token_type_ids": (ids == loaded.config.image_token_id).int()} if len(pixels) > 1 else {}
    with torch.no_grad():
        logits = loaded(input_ids=ids, **pixels, **types).logits
    start = len(sample.prompt_token_ids)
    expected = logits[0, start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(score(rank, to_score([sample]))[0]), expected, atol=1e-5, rtol=0)


def test_large_weights_are_split_and_indexed(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_folder, "FILE_BYTES", 1_000_000)
    rank = make(spec(world))
    save(rank, tmp_path)
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 1
    loaded = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "hf")
    for (name, mine), (_, other) in zip(rank.model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_nothing_in_a_checkpoint_needs_unpickling(saved: Path) -> None:
    kinds = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".jinja", ".txt"}


def test_a_damaged_or_foreign_checkpoint_is_refused(world: Path, saved: Path) -> None:
    with pytest.raises(DataError, match="does not fit the model"):
        load(make(spec(world, "internvl")), saved)
    rank = make(spec(world))
    path = saved / "learner" / "exp_avg-00001.safetensors"
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"exp_avg-00001\.safetensors is damaged: it has .* bytes"):
        load(rank, saved)
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"exp_avg-00001\.safetensors is damaged: sha256"):
        check_manifest(saved)
    (saved / "learner" / "state.json").unlink()
    with pytest.raises(DataError, match=r"no learner checkpoint .*state\.json is missing"):
        load(rank, saved)


def test_a_checkpoint_without_reference_cannot_serve_a_kl_penalty(world: Path, tmp_path: Path) -> None:
    save(make(spec(world, loss=LossConfig(beta=0.0))), tmp_path)
    assert "reference" not in json.loads((tmp_path / "learner" / "state.json").read_text())["files"]
    with pytest.raises(DataError, match="resume with beta=0"):
        load(make(spec(world)), tmp_path)


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(r=4)])
def test_the_room_a_checkpoint_needs_is_known_before(world: Path, tmp_path: Path, lora: LoraConfig) -> None:
    rank = make(spec(world, dtype="bfloat16", lora=lora))
    save(rank, tmp_path)
    tensors = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert checkpoint_bytes(rank) < tensors < 1.1 * checkpoint_bytes(rank) + 64_000  # headers, generator states


def test_a_disk_without_room_is_refused_before_anything_is_written(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = make(spec(world, loss=LossConfig(beta=0.0)))
    needed = checkpoint_bytes(rank) // 2**20
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(ResourceError, match=rf"{tmp_path} .*takes {needed} MiB, 1 MiB are free; .*keep_last.* resume="):
        save(rank, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_folder_that_is_not_there_on_the_node_of_rank_0_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        require_room(tmp_path / "elsewhere" / ".step_5.tmp", 2**40)
    said = str(caught.value)
    assert f"that folder is not there on {socket.gethostname()}, where learner rank 0 is" in said
    assert "must lie on a file system that all nodes have" in said
    assert "make room" not in said


@pytest.mark.parametrize("stage", [2, 3])
def test_a_disk_that_fills_up_on_the_way_ends_the_checkpoint_and_nothing_else(
    world: Path, tmp_path: Path, stage: int
) -> None:
    """The kernel refuses files above 64 KiB, as it refuses any on a full disk: safetensors and Python each say it."""
    rank = make(spec(world, zero_stage=stage))
    samples = completions(world)
    train_step(rank, samples, progress=0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("full", "whole"):
        (tmp_path / name).mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(
            ResourceError, match=r"no checkpoint can be written to .*full \(.*File too large.*MiB are free"
        ):
            save(rank, tmp_path / "full")
        contents = snapshot(rank)
        assert contents is not None
        (tmp_path / "behind").mkdir()
        with pytest.raises(ResourceError, match=r"no checkpoint can be written to .*behind \(.*File too large"):
            write(contents, tmp_path / "behind")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    save(rank, tmp_path / "whole")
    load(rank, tmp_path / "whole")
    assert train_step(rank, samples, progress=0.0).grad_norm > 0
