"""What is refused before anything starts: one line each, with what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mrpo.checkpoint_checks import check_checkpoint
from mrpo.checkpoint_source import NEEDED, UNNEEDED, checkpoint_folder, local_checkpoint
from mrpo.choices import ToyFamily
from mrpo.compose import compose_config
from mrpo.config import ModelConfig
from mrpo.errors import ConfigError, DataError, UserError
from mrpo.families import FAMILIES
from mrpo.weight_files import read_header, read_tensors
from tests.unit.checkpoint_folders import SHARDS, write_checkpoint

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
Damage = Callable[[Path], object]


def change(name: str, **fields: object) -> Damage:
    def apply(folder: Path) -> None:
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **fields}))

    return apply


def without(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def overwrite(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def edit_shard(edit: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / SHARDS[1]).write_bytes(edit((folder / SHARDS[1]).read_bytes()))


def only_pickles(folder: Path) -> None:
    without(*SHARDS, "model.safetensors.index.json")(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_whole_checkpoint_passes(model_type: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", model_type)
    assert check_checkpoint(folder).model_type == model_type
    model = ModelConfig(path=str(folder), family=ToyFamily(model_type))
    assert local_checkpoint(model) == folder.resolve()
    assert {name: item.shape for name, item in read_tensors(folder).items()} == {"a": (4, 3), "b": (4, 3)}


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (without("config.json"), ConfigError, "no model at .*config.json.* model.path"),
        (overwrite("config.json", "{"), ConfigError, "no model at .* is no JSON .* model.path"),
        (overwrite("config.json", "[]"), ConfigError, "holds no JSON object"),
        (change("config.json", model_type="llama"), ConfigError, "'llama' is not supported; known families: qwen2_5"),
        (change("config.json", model_type="internvl_chat"), ConfigError, r"make convert MODEL=\S+ OUT=\S+-native$"),
        (change("config.json", model_type="internvl"), ConfigError, "'internvl', but model.family=qwen2_5_vl; choose"),
        (without("preprocessor_config.json"), ConfigError, "neither preprocessor_config.json nor processor_config"),
        (overwrite("preprocessor_config.json", POINTER), DataError, "preprocessor_config.json is a git-lfs pointer"),
        (without("tokenizer_config.json"), ConfigError, "has no tokenizer_config.json; copy"),
        (without("tokenizer.json"), ConfigError, "neither tokenizer.json nor vocab.json with merges.txt"),
        (overwrite("tokenizer.json", POINTER), DataError, "tokenizer.json is a git-lfs pointer .* `git lfs pull` in"),
        (overwrite("tokenizer_config.json", "{}"), ConfigError, r"no chat template \(chat_template.jinja or"),
        (change("tokenizer.json", added_tokens=[{"id": 1, "content": "<|im_end|>"}]), ConfigError, "image_pad"),
        (change("tokenizer.json", added_tokens=[{"id": 1, "content": "<|image_pad|>"}]), ConfigError, "im_end"),
        (without(SHARDS[1]), DataError, f"{SHARDS[1]} is missing, which model.safetensors.index.json names; fetch"),
        (overwrite(SHARDS[1], POINTER), DataError, f"{SHARDS[1]} is a git-lfs pointer .* `git lfs pull` in"),
        (overwrite(SHARDS[1], ""), DataError, r"no whole safetensors file \(0 bytes"),
        (edit_shard(lambda data: data[:-1]), DataError, f"{SHARDS[1]} is truncated or corrupt: .* its header says"),
        (edit_shard(lambda data: data + b"x"), DataError, "truncated or corrupt"),
        (edit_shard(lambda data: data[:20]), DataError, "no whole safetensors file"),
        (edit_shard(lambda data: b"\xff" * 8 + data[8:]), DataError, "no whole safetensors file"),
        (edit_shard(lambda data: data[:8] + b"#" + data[9:]), DataError, "corrupt header"),
        (edit_shard(lambda data: data.replace(b"F32", b"F99")), DataError, "corrupt header"),
        (edit_shard(lambda data: data.replace(b"[4,3]", b"[4,4]")), DataError, "corrupt header .*48 bytes for shape"),
        (edit_shard(lambda data: data.replace(b'"b"', b'"c"')), DataError, "holds no tensor 'b', which model.safeten"),
        (change("model.safetensors.index.json", weight_map={"a": "../a"}), DataError, "no file beside it"),
        (change("model.safetensors.index.json", weight_map={}), DataError, "has no weight_map"),
        (only_pickles, DataError, r"as pickles \(pytorch_model.bin\), which can run code"),
        (without(*SHARDS, "model.safetensors.index.json"), DataError, "neither model.safetensors nor model.safe"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(damage: Damage, kind: type[UserError], words: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    damage(folder)
    with pytest.raises(kind, match=words) as caught:
        local_checkpoint(ModelConfig(path=str(folder), family=ToyFamily.QWEN2_5_VL))
    assert "\n" not in str(caught.value)


def test_tokens_may_stand_in_any_of_the_tokenizers_files(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    (folder / "added_tokens.json").write_text('{"<|image_pad|>": 5}')
    decoder = {"6": {"content": "<|im_end|>"}}
    change("tokenizer_config.json", added_tokens_decoder=decoder)(folder)
    assert check_checkpoint(folder).model_type == "qwen2_5_vl"


def test_a_tokenizer_that_git_lfs_did_not_fetch_is_seen_where_its_tokens_stand_elsewhere_too(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    decoder = {"6": {"content": "<|im_end|>"}, "7": {"content": "<|image_pad|>"}}
    change("tokenizer_config.json", added_tokens_decoder=decoder)(folder)
    assert check_checkpoint(folder).model_type == "qwen2_5_vl"
    overwrite("tokenizer.json", POINTER)(folder)
    with pytest.raises(DataError, match=r"tokenizer.json is a git-lfs pointer"):
        check_checkpoint(folder)


def test_sixteen_gigabytes_are_checked_in_a_second(tmp_path: Path) -> None:
    """A sparse file with the header of 700 tensors in 16 GB."""
    size, count = 16 * 10**9, 700
    step = size // count // 2 * 2
    header = json.dumps(
        {
            str(n): {"dtype": "BF16", "shape": [step // 2], "data_offsets": [n * step, (n + 1) * step]}
            for n in range(count)
        }
    ).encode()
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + count * step)
    started = time.perf_counter()
    assert len(read_header(file)) == count
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize("family", ["internvl3", "qwen2_5_vl", "qwen3_vl"])
def test_every_recipe_names_its_family(family: str) -> None:
    config = compose_config([f"model={family}"])
    assert config.model.family is not None
    published = FAMILIES[config.model.family.value].published
    assert config.model.path in [checkpoint.hub_id for checkpoint in published]


def test_a_hub_id_brings_neither_pickles_nor_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    names = [
        "README.md", "config.json", "merges.txt", "chat_template.jinja", "model-00001-of-00002.safetensors",
        "pytorch_model.bin", "model.pth", "model.gguf", "modeling_internvl_chat.py", "onnx/model.safetensors",
    ]  # fmt: skip
    asked: dict[str, object] = {}

    def snapshot(path: str, **settings: object) -> str:
        asked.update(settings, path=path)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert checkpoint_folder("someone/model", revision="v2", setting="model.path") == tmp_path
    assert (asked["path"], asked["revision"]) == ("someone/model", "v2")
    assert (asked["allow_patterns"], asked["ignore_patterns"]) == (list(NEEDED), list(UNNEEDED))
    kept = filter_repo_objects(names, allow_patterns=list(NEEDED), ignore_patterns=list(UNNEEDED))
    assert list(kept) == names[:5]
