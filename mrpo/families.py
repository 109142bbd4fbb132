"""One row per model family, keyed by the Hugging Face `model_type`. Adding a family is one row and its parity test."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Everything that differs between model families."""

    model_type: str
    model_class: str  # in transformers
    processor_class: str  # in transformers
    think_tag: str  # "thinking" where the tokenizer owns <think>
    image_placeholder: str  # what the chat template leaves for one image before expansion
    image_token: str  # the token that stands once per image feature after expansion
    end_of_turn: str  # the one chat-control token the sampler may emit
    vision_prefixes: tuple[str, ...]  # parameter-name prefixes of the vision tower; the projector may lie in it
    projector_prefixes: tuple[str, ...]  # of what brings its features to the language model
    pixel_inputs: tuple[str, ...]  # outputs of the image processor that the forward pass takes
    lora_targets: tuple[str, ...]


QWEN_LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            model_type="qwen2_5_vl",
            model_class="Qwen2_5_VLForConditionalGeneration",
            processor_class="Qwen2_5_VLProcessor",
            think_tag="think",
            image_placeholder="<|vision_start|><|image_pad|><|vision_end|>",
            image_token="<|image_pad|>",
            end_of_turn="<|im_end|>",
            vision_prefixes=("model.visual.",),
            projector_prefixes=("model.visual.merger.",),
            pixel_inputs=("pixel_values", "image_grid_thw"),
            lora_targets=QWEN_LORA_TARGETS,
        ),
        Family(
            model_type="qwen3_vl",
            model_class="Qwen3VLForConditionalGeneration",
            processor_class="Qwen3VLProcessor",
            think_tag="thinking",
            image_placeholder="<|vision_start|><|image_pad|><|vision_end|>",
            image_token="<|image_pad|>",
            end_of_turn="<|im_end|>",
            vision_prefixes=("model.visual.",),
            projector_prefixes=("model.visual.merger.", "model.visual.deepstack_merger_list."),
            pixel_inputs=("pixel_values", "image_grid_thw"),
            lora_targets=QWEN_LORA_TARGETS,
        ),
        Family(
            model_type="internvl",
            model_class="InternVLForConditionalGeneration",
            processor_class="InternVLProcessor",
            think_tag="think",
            image_placeholder="<IMG_CONTEXT>",
            image_token="<IMG_CONTEXT>",
            end_of_turn="<|im_end|>",
            vision_prefixes=("model.vision_tower.",),
            projector_prefixes=("model.multi_modal_projector.",),
            pixel_inputs=("pixel_values",),
            lora_targets=QWEN_LORA_TARGETS,
        ),
    )
}


def family_of(model_type: str) -> Family:
    """The row of a Hugging Face `model_type`.

    Raises:
        ConfigError: the family is unknown; the message lists the known ones.
    """
    if model_type == "internvl_chat":
        raise ConfigError(
            "model type 'internvl_chat' is InternVL's custom-code layout, whose code is never executed here; "
            "use a native checkpoint (model type 'internvl', e.g. OpenGVLab/InternVL3-8B-hf)"
        )
    if model_type not in FAMILIES:
        raise ConfigError(f"model type {model_type!r} is not supported; known families: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
