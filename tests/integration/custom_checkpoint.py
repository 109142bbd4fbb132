"""A toy InternVL3 in the custom-code layout, in the files of the published checkpoints: 448-pixel tiles of 256 tokens.

Names and shapes are written out here, not taken from the converter, which they test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rollout.vocabulary import byte_alphabet

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>"]
PLAIN = ["<tool_call>", "</tool_call>"]
IMAGE = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>"]
VISION, TEXT, VISION_LAYERS, TEXT_LAYERS, PATCHES = 64, 128, 2, 2, 1024
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
RAN = "ran"  # a file the checkpoint's code would leave


def write_custom_checkpoint(folder: Path, *, dtype: torch.dtype = torch.float32, num_shards: int = 2) -> Path:
    """The whole folder; returns it. Weights depend on nothing but their order."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = _write_tokenizer(folder)
    _write_configs(folder, vocab_size, str(dtype).removeprefix("torch."))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = {name: tensor.to(dtype) for name, tensor in _weights(vocab_size)}
    names = sorted(weights)
    index = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: weights[name] for name in names[number::num_shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    _write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    for code in ("modeling_internvl_chat.py", "configuration_internvl_chat.py"):
        mark = str(folder / RAN)
        (folder / code).write_text(f"open({mark!r}, 'w').close()\nraise RuntimeError('code of a checkpoint ran')\n")
    (folder / "LICENSE").write_text("MIT\n")
    return folder


def _write(file: Path, tree: Any) -> None:
    file.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path) -> int:
    """Bytes and added tokens, without a `tokenizer.json`; returns the number of ids."""
    vocabulary = {char: index for index, char in enumerate(byte_alphabet().values())}
    added = {token: len(vocabulary) + index for index, token in enumerate([*SPECIAL, *PLAIN, *IMAGE])}
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {str(index): {"content": token, **plain, "special": token not in PLAIN} for token, index in added.items()}
    _write(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    _write(folder / "added_tokens.json", added)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": SPECIAL}
    _write(folder / "special_tokens_map.json", names)
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "bos_token": None,
        "chat_template": "{{ 'You are another template.' }}",
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 8192,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        **names,
    }
    _write(folder / "tokenizer_config.json", settings)
    return len(vocabulary) + len(added)


def _write_configs(folder: Path, vocab_size: int, dtype: str) -> None:
    language = {
        "_name_or_path": "./pretrained/Qwen2.5",
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "hidden_act": "silu",
        "hidden_size": TEXT,
        "initializer_range": 0.02,
        "intermediate_size": 256,
        "max_position_embeddings": 2048,
        "max_window_layers": 70,
        "model_type": "qwen2",
        "moe_config": None,
        "num_attention_heads": HEADS,
        "num_hidden_layers": TEXT_LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
        "torch_dtype": dtype,
        "use_bfloat16": True,
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": vocab_size,
    }
    vision = {
        "architectures": ["InternVisionModel"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoModel": "modeling_intern_vit.InternVisionModel"},
        "drop_path_rate": 0.1,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": VISION,
        "image_size": 448,
        "initializer_factor": 0.1,
        "initializer_range": 1e-10,
        "intermediate_size": 128,
        "layer_norm_eps": 1e-6,
        "model_type": "intern_vit_6b",
        "norm_type": "layer_norm",
        "num_attention_heads": HEADS,
        "num_channels": 3,
        "num_hidden_layers": VISION_LAYERS,
        "patch_size": 14,
        "qk_normalization": False,
        "qkv_bias": True,
        "torch_dtype": dtype,
        "use_flash_attn": True,
    }
    config = {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "image_fold": None,
        "llm_config": language,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "system_message": None,
        "template": "internvl2_5",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_backbone_lora": 0,
        "use_thumbnail": True,
        "vision_config": vision,
    }
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {"_from_model_config": True, "eos_token_id": [257, 258, 256]})
    size = {"crop_size": 448, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor", "size": 448}
    _write(folder / "preprocessor_config.json", size)


def _weights(vocab_size: int) -> Iterator[tuple[str, Tensor]]:
    def matrix(name: str, rows: int, columns: int, *, bias: bool) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.weight", torch.randn(rows, columns) * columns**-0.5
        if bias:
            yield f"{name}.bias", 0.1 * torch.randn(rows)

    def norm(name: str, size: int, *, bias: bool) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.weight", 1.0 + 0.1 * torch.randn(size)
        if bias:
            yield f"{name}.bias", 0.1 * torch.randn(size)

    embeddings = "vision_model.embeddings"
    yield f"{embeddings}.class_embedding", torch.randn(1, 1, VISION)
    yield f"{embeddings}.patch_embedding.weight", torch.randn(VISION, 3, 14, 14) * (3 * 14 * 14) ** -0.5
    yield f"{embeddings}.patch_embedding.bias", 0.1 * torch.randn(VISION)
    yield f"{embeddings}.position_embedding", 0.5 * torch.randn(1, PATCHES + 1, VISION)
    for number in range(VISION_LAYERS):
        layer = f"vision_model.encoder.layers.{number}"
        yield from matrix(f"{layer}.attn.qkv", 3 * VISION, VISION, bias=True)
        yield from matrix(f"{layer}.attn.proj", VISION, VISION, bias=True)
        yield from matrix(f"{layer}.mlp.fc1", 128, VISION, bias=True)
        yield from matrix(f"{layer}.mlp.fc2", VISION, 128, bias=True)
        yield from norm(f"{layer}.norm1", VISION, bias=True)
        yield from norm(f"{layer}.norm2", VISION, bias=True)
        yield f"{layer}.ls1", 0.5 + 0.1 * torch.randn(VISION)
        yield f"{layer}.ls2", 0.5 + 0.1 * torch.randn(VISION)
    yield from norm("mlp1.0", 4 * VISION, bias=True)
    yield from matrix("mlp1.1", TEXT, 4 * VISION, bias=True)
    yield from matrix("mlp1.3", TEXT, TEXT, bias=True)
    yield "language_model.model.embed_tokens.weight", torch.randn(vocab_size, TEXT)
    for number in range(TEXT_LAYERS):
        layer = f"language_model.model.layers.{number}"
        yield from matrix(f"{layer}.self_attn.q_proj", HEADS * HEAD_DIM, TEXT, bias=True)
        yield from matrix(f"{layer}.self_attn.k_proj", KV_HEADS * HEAD_DIM, TEXT, bias=True)
        yield from matrix(f"{layer}.self_attn.v_proj", KV_HEADS * HEAD_DIM, TEXT, bias=True)
        yield from matrix(f"{layer}.self_attn.o_proj", TEXT, HEADS * HEAD_DIM, bias=False)
        yield from matrix(f"{layer}.mlp.gate_proj", 256, TEXT, bias=False)
        yield from matrix(f"{layer}.mlp.up_proj", 256, TEXT, bias=False)
        yield from matrix(f"{layer}.mlp.down_proj", TEXT, 256, bias=False)
        yield from norm(f"{layer}.input_layernorm", TEXT, bias=False)
        yield from norm(f"{layer}.post_attention_layernorm", TEXT, bias=False)
    yield from norm("language_model.model.norm", TEXT, bias=False)
    yield from matrix("language_model.lm_head", vocab_size, TEXT, bias=False)
