"""`make bench ARGS=conversion`: time and memory of `make convert` on a folder with the tensors of InternVL3-8B.

Their values are zeros that take no place on the disk (holes in sparse files), so reading is faster than it would be;
16 GB are written. Fails above `MAX_GIB` of memory.
"""

from __future__ import annotations

import json
import logging
import resource
import struct
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForImageTextToText, InternVLConfig

from mrpo.convert.configs import shape_of_custom
from mrpo.convert.tensor_names import pairs, saved_name
from tests.integration.custom_checkpoint import write_custom_checkpoint
from tests.locations import REPOSITORY

logger = logging.getLogger("bench")
ARCHITECTURE = REPOSITORY / "conf" / "architecture" / "internvl3_8b.yaml"
NUM_SHARDS = 4  # as published
MAX_GIB = 3.0
GIB = 1024**3


def report() -> bool:
    """Convert once; whether memory stayed within the bound."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "custom", Path(scratch) / "native"
        num_bytes = write_empty_checkpoint(source)
        command = [sys.executable, "-m", "mrpo.convert", str(source), str(target)]
        started = time.monotonic()
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / GIB
    logger.info(
        "%-40s %.1f GB, %.0f s, %.2f GiB", "conversion: weights, time, peak memory", num_bytes / 1e9, seconds, peak
    )
    return peak < MAX_GIB


def write_empty_checkpoint(folder: Path) -> int:
    """A custom-layout folder of the published sizes, bfloat16; returns the bytes of its tensors."""
    write_custom_checkpoint(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    sizes = yaml.safe_load(ARCHITECTURE.read_text())
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"] |= sizes["text_config"]
    vision = sizes["vision_config"]
    config["vision_config"] |= {name: vision[name] for name in ("hidden_size", "intermediate_size")}
    config["vision_config"] |= {name: vision[name] for name in ("num_hidden_layers", "num_attention_heads")}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = custom_shapes(config, sizes)
    names, index = sorted(shapes), {}
    for number in range(NUM_SHARDS):
        shard = f"model-{number + 1:05d}-of-{NUM_SHARDS:05d}.safetensors"
        part = names[number * len(names) // NUM_SHARDS : (number + 1) * len(names) // NUM_SHARDS]
        write_holes(folder / shard, {name: shapes[name] for name in part})
        index |= dict.fromkeys(part, shard)
    tree = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(tree))
    return sum(2 * prod(shape) for shape in shapes.values())


def custom_shapes(config: dict[str, Any], sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the custom layout, from the shapes of the native model that transformers builds."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            InternVLConfig(
                text_config={"model_type": "qwen2"} | sizes["text_config"],
                vision_config=sizes["vision_config"],
                downsample_ratio=sizes["downsample_ratio"],
                tie_word_embeddings=sizes["tie_word_embeddings"],
            )
        )
    native = {saved_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {}
    for pair in pairs(shape_of_custom(config)):
        if all(name in native for name in pair.native):
            parts = [native[name] for name in pair.native]
            shapes[pair.custom] = (sum(part[0] for part in parts), *parts[0][1:])
    assert sum(map(prod, shapes.values())) == sizes["num_parameters"]
    return shapes


def write_holes(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros in bfloat16: its header, and nothing that takes place."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + 2 * prod(shape)]}
    text = json.dumps(header).encode()
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(stream.tell() + end)
