"""Tokenizer, image processor and chat template of the native layout, by transformers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrpo.checkpoint_checks import added_tokens
from mrpo.errors import ConfigError

IMAGE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
}
# The native processor wants a token for videos too. The custom tokenizer has none but `<|video_pad|>`, which vLLM's
# native support would take for a regular expression; so it is added, as in the published native checkpoints, with an id
# beyond the embeddings. Nothing here sends videos.
VIDEO_TOKEN = "<video>"
END_OF_TURN = "<|im_end|>"
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
# ChatML without a system turn of its own, as the published native checkpoints have it.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' ~ message['role'] ~ '\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {{- '<IMG_CONTEXT>\\n' }}
            {%- elif part['type'] == 'video' %}
                {{- '<video>\\n' }}
            {%- elif part['type'] == 'text' %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def native_tokenizer(folder: Path, *, vocab_size: int) -> Any:
    """The tokenizer of a custom-layout folder, with names for its image tokens and one more, for videos.

    Raises:
        ConfigError: an image token is missing, its id has no row in the embeddings, or loading would change an id.
    """
    from transformers import Qwen2Tokenizer

    known = {token: index for tokens in added_tokens(folder) for token, index in tokens.items()}
    for token in (*IMAGE_TOKENS.values(), END_OF_TURN):
        if not known.get(token, vocab_size) < vocab_size:
            raise ConfigError(
                f"the tokenizer in {folder} has no token {token!r} with a row in the embeddings ({vocab_size} rows); "
                "use the tokenizer of the published checkpoint"
            )
    tokenizer = Qwen2Tokenizer.from_pretrained(folder, extra_special_tokens=IMAGE_TOKENS | {"video_token": VIDEO_TOKEN})
    ids = tokenizer.get_vocab()
    changed = next((token for token, index in known.items() if ids.get(token) != index), None)
    if changed is not None:
        raise ConfigError(
            f"the tokenizer in {folder} gives {changed!r} the id {ids.get(changed)}, its other files {known[changed]}; "
            "use the tokenizer of the published checkpoint"
        )
    return tokenizer


def native_processor(tokenizer: Any, custom: dict[str, Any]) -> Any:
    """Processor with the custom layout's tiling.

    Args:
        tokenizer: from `native_tokenizer`.
        custom: `config.json` of the custom layout, which holds what is there of image settings.
    """
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    from mrpo.convert.configs import image_tokens

    vision = custom["vision_config"]
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    tiled = custom.get("dynamic_image_size", True)
    normalise = {"size": size, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            **normalise,
            crop_to_patches=True,
            min_patches=custom.get("min_dynamic_patch", 1) if tiled else 1,
            max_patches=custom.get("max_dynamic_patch", 12) if tiled else 1,
        ),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**normalise),
        image_seq_length=image_tokens(vision["image_size"], vision["patch_size"], custom["downsample_ratio"]),
        chat_template=CHAT_TEMPLATE,
    )


def generation_settings(given: dict[str, Any], *, end_of_turn_id: int, pad_id: int | None) -> dict[str, Any]:
    """`generation_config.json`, whose stop tokens include the end of a turn.

    Args:
        given: the source's; empty where it has none.
        end_of_turn_id: of `<|im_end|>`.
        pad_id: of the padding token.
    """
    named = given.get("eos_token_id")
    stops = [] if named is None else named if isinstance(named, list) else [named]
    settings = {name: value for name, value in given.items() if name != "_from_model_config"}
    settings["eos_token_id"] = stops if end_of_turn_id in stops else [end_of_turn_id, *stops]
    if settings.get("pad_token_id") is None and pad_id is not None:
        settings["pad_token_id"] = pad_id
    return settings
