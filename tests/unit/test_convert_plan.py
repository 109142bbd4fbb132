"""The conversion without torch's or transformers' help: names, bytes, refusals, memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mrpo.convert.__main__ import main
from mrpo.convert.configs import custom_config, native_config, shape_of_custom, shape_of_native
from mrpo.convert.plan import to_custom, to_native
from mrpo.convert.processors import generation_settings
from mrpo.convert.tensor_names import Pair, pairs
from mrpo.convert.writer import write_weights
from mrpo.errors import ConfigError, DataError
from mrpo.weight_files import read_tensors
from tests.unit.checkpoint_folders import write_checkpoint

CUSTOM: dict[str, Any] = {
    "model_type": "internvl_chat",
    "downsample_ratio": 0.5,
    "ps_version": "v2",
    "select_layer": -1,
    "use_thumbnail": True,
    "force_image_size": 448,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 12,
    "torch_dtype": "bfloat16",
    "llm_config": {
        "model_type": "qwen2",
        "num_hidden_layers": 28,
        "vocab_size": 151674,
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        "eos_token_id": 151643,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "num_hidden_layers": 24,
        "image_size": 448,
        "patch_size": 14,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
    },
}


def changed(section: str | None, **fields: Any) -> dict[str, Any]:
    tree = json.loads(json.dumps(CUSTOM))
    (tree if section is None else tree[section]).update(fields)
    return dict(tree)


def native_of(custom: dict[str, Any]) -> dict[str, Any]:
    return native_config(custom, image_token_id=151667, end_of_turn_id=151645)


def test_the_8b_model_has_as_many_tensors_as_published() -> None:
    """28 language layers of 12 tensors, 24 vision layers of 14 fused or 18 cut, and 3 + 6 + 4 besides."""
    found = list(pairs(shape_of_custom(CUSTOM)))
    assert len(found) == 28 * 12 + 3 + 6 + 4 + 24 * 14 == 685
    assert sum(len(pair.native) for pair in found) == 28 * 12 + 3 + 6 + 4 + 24 * 18
    assert list(pairs(shape_of_native(native_of(CUSTOM)))) == found


def test_configs_keep_what_shapes_the_model() -> None:
    native = native_of(CUSTOM)
    assert (native["image_seq_length"], native["image_token_id"]) == (256, 151667)
    assert native["text_config"]["eos_token_id"] == 151645, "the end of a turn, not of the text"
    assert native["tie_word_embeddings"] is native["text_config"]["tie_word_embeddings"] is False
    again = custom_config(native, {"min_patches": 2, "max_patches": 6, "crop_to_patches": True}, has_head=True)
    assert (again["min_dynamic_patch"], again["max_dynamic_patch"]) == (2, 6)
    assert again["vision_config"]["image_size"] == 448 and again["llm_config"]["rope_theta"] == 1e6
    assert native_config(again, image_token_id=151667, end_of_turn_id=151645) == native
    one_tile = custom_config(native, {"crop_to_patches": False, "max_patches": 12}, has_head=True)
    assert (one_tile["min_dynamic_patch"], one_tile["max_dynamic_patch"]) == (1, 1)


def test_rotary_settings_of_transformers_5_become_those_of_4() -> None:
    native = native_of(CUSTOM)
    del native["text_config"]["rope_scaling"], native["text_config"]["rope_theta"]
    native["text_config"]["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e5}
    language = custom_config(native, {}, has_head=True)["llm_config"]
    assert (language["rope_theta"], language["rope_scaling"]) == (5e5, {"rope_type": "dynamic", "factor": 2.0})
    native["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert custom_config(native, {}, has_head=True)["llm_config"]["rope_scaling"] is None


def test_weights_say_whether_the_head_is_tied_where_the_config_does_not() -> None:
    native = native_of(CUSTOM)
    for has_head in (True, False):
        assert custom_config(native, {}, has_head=has_head)["llm_config"]["tie_word_embeddings"] is False
    del native["tie_word_embeddings"], native["text_config"]["tie_word_embeddings"]
    for has_head in (True, False):
        derived = custom_config(native, {}, has_head=has_head)
        assert derived["tie_word_embeddings"] is derived["llm_config"]["tie_word_embeddings"] is not has_head


@pytest.mark.parametrize(
    ("section", "fields", "words"),
    [
        ("llm_config", {"model_type": "internlm2"}, "llm_config.model_type='internlm2' instead of 'qwen2'"),
        (None, {"ps_version": "v1"}, "ps_version='v1' instead of 'v2'"),
        (None, {"select_layer": -2}, "select_layer=-2 instead of -1"),
        (None, {"pad2square": True}, "pad2square=True"),
        (None, {"force_image_size": 896}, "force_image_size=896 instead of None or 448"),
        (None, {"use_thumbnail": False}, "use_thumbnail=False instead of True"),
        (None, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (None, {"downsample_ratio": None}, "downsample_ratio is missing"),
        (None, {"llm_config": None}, "has no llm_config"),
        ("vision_config", {"norm_type": "other"}, "norm_type='other'"),
    ],
)
def test_what_has_no_native_form_is_refused(section: str | None, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words) + r".*only InternVL3 checkpoints"):
        native_of(changed(section, **fields))


def test_one_tile_needs_no_thumbnail() -> None:
    assert native_of(changed(None, use_thumbnail=False, max_dynamic_patch=1))["image_seq_length"] == 256
    assert native_of(changed(None, use_thumbnail=False, dynamic_image_size=False))["image_seq_length"] == 256


def test_the_end_of_a_turn_stops_a_generation() -> None:
    assert generation_settings({}, end_of_turn_id=7, pad_id=1) == {"eos_token_id": [7], "pad_token_id": 1}
    given = {"_from_model_config": True, "eos_token_id": 9, "pad_token_id": 3, "temperature": 0.5}
    found = generation_settings(given, end_of_turn_id=7, pad_id=1)
    assert found == {"eos_token_id": [7, 9], "pad_token_id": 3, "temperature": 0.5}
    assert generation_settings({"eos_token_id": [9, 7]}, end_of_turn_id=7, pad_id=None) == {"eos_token_id": [9, 7]}


SMALL = (Pair(custom="qkv", native=("q", "k", "v")), Pair(custom="n", native=("m",)), Pair(custom="h", native=("h",)))
OPTIONAL = (*SMALL[:2], Pair(custom="h", native=("h",), optional=True))


def small(folder: Path, **others: np.ndarray) -> Path:
    folder.mkdir()
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    save_file(
        {"qkv": rows, "n": np.array([1.5], np.float16), "h": np.array(3.0), **others}, folder / "model.safetensors"
    )
    return folder


def test_fused_rows_are_cut_and_joined(tmp_path: Path) -> None:
    source = small(tmp_path / "custom")
    for name in ("native", "back"):
        (tmp_path / name).mkdir()
    write_weights(tmp_path / "native", to_native(SMALL, read_tensors(source)), file_bytes=20)
    files = sorted(file.name for file in (tmp_path / "native").glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)]
    found = {name: value for file in files for name, value in load_file(tmp_path / "native" / file).items()}
    assert {name: value.tolist() for name, value in found.items()} == {
        "q": [[0, 1], [2, 3]], "k": [[4, 5], [6, 7]], "v": [[8, 9], [10, 11]], "m": [1.5], "h": 3.0,
    }  # fmt: skip
    write_weights(tmp_path / "back", to_custom(SMALL, read_tensors(tmp_path / "native")))
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)


def test_every_tensor_begins_at_a_multiple_of_its_item_size(tmp_path: Path) -> None:
    write_weights(tmp_path, to_native(SMALL, read_tensors(small(tmp_path / "custom"))))
    items = {"F64": 8, "F32": 4, "F16": 2}
    assert all(tensor.start % items[tensor.dtype] == 0 for tensor in read_tensors(tmp_path).values())


def test_unknown_missing_and_odd_tensors_are_named(tmp_path: Path) -> None:
    extra = read_tensors(small(tmp_path / "extra", lora_A=np.zeros(2)))
    with pytest.raises(DataError, match="has unknown tensors: lora_A; only whole InternVL"):
        to_native(SMALL, extra)
    less = read_tensors(small(tmp_path / "less"))
    del less["h"]
    with pytest.raises(DataError, match="lacks tensors: h; only whole"):
        to_native(SMALL, less)
    assert [tensor.name for tensor in to_native(OPTIONAL, less)] == ["q", "k", "v", "m"]
    with pytest.raises(DataError, match=r"lacks tensors: h, k, m and 2 more"):
        to_custom(SMALL, {"x": next(iter(less.values()))})
    odd = read_tensors(small(tmp_path / "odd", qkv=np.zeros((4, 2))))
    with pytest.raises(DataError, match=r"qkv of shape \[4, 2\] is no 3 parts of equal size"):
        to_native(SMALL, odd)
    names = ("q", "k", "v", "m", "h")
    (tmp_path / "parts").mkdir()
    save_file({name: np.zeros(1 + (name == "v")) for name in names}, tmp_path / "parts" / "model.safetensors")
    with pytest.raises(DataError, match=r"parts of qkv differ in type or shape: q F64 \[1\].*v F64 \[2\]"):
        to_custom(SMALL, read_tensors(tmp_path / "parts"))


def test_older_spellings_of_native_names_are_understood(tmp_path: Path) -> None:
    spelled = {
        "lm_head.weight": "language_model.lm_head.weight",
        "model.language_model.norm.weight": "language_model.model.norm.weight",
        "model.vision_tower.embeddings.cls_token": "vision_model.embeddings.class_embedding",
        "model.multi_modal_projector.linear_1.bias": "mlp1.1.bias",
    }
    save_file({name: np.zeros(1) for name in spelled}, tmp_path / "model.safetensors")
    wanted = [pair for pair in pairs(shape_of_custom(CUSTOM)) if pair.custom in spelled.values()]
    assert {tensor.name for tensor in to_custom(wanted, read_tensors(tmp_path))} == set(spelled.values())


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2, arguments
    return " ".join(capsys.readouterr().err.split())


def test_what_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    folder = write_checkpoint(tmp_path / "qwen")
    assert "give a model and a new folder" in said(capsys)
    assert "make convert MODEL=" in said(capsys, "", "")
    assert "exists already; give a new folder" in said(capsys, str(folder), str(tmp_path))
    assert "model type 'qwen2_5_vl'; only InternVL has two layouts" in said(capsys, str(folder), out)
    (folder / "config.json").write_text(json.dumps(CUSTOM))
    assert "lacks tensors: language_model.lm_head.weight" in said(capsys, str(folder), out)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*")), "nothing is left behind"


MEMORY = """
import resource, sys
from pathlib import Path
from mrpo.convert.plan import to_native
from mrpo.convert.tensor_names import Pair
from mrpo.convert.writer import write_weights
from mrpo.weight_files import read_tensors
source, target = map(Path, sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
names = [Pair(custom=str(n), native=tuple(f"{n}.{part}" for part in "qkv")) for n in range(4)]
write_weights(target, to_native(names, read_tensors(source)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    """600 MB in four tensors: no tensor is held, only a few megabytes at a time."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    size = 150_000_000
    header = json.dumps(
        {str(n): {"dtype": "BF16", "shape": [size // 2], "data_offsets": [n * size, (n + 1) * size]} for n in range(4)}
    ).encode()
    with (source / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + 4 * size)
    run = subprocess.run([sys.executable, "-c", MEMORY, source, target], capture_output=True, text=True, check=True)
    assert (target / "model.safetensors").stat().st_size > 4 * size
    assert int(run.stdout) < 60, f"{run.stdout} MiB more than before"
