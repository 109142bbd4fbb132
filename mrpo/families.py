"""One row per model family, keyed by the Hugging Face `model_type`. Adding a family is one row and its parity test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mrpo.errors import ConfigError

CUSTOM_LAYOUT = "internvl_chat"  # model type of InternVL checkpoints that bring their own code


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A checkpoint on the Hugging Face hub, as `make models` shows it."""

    hub_id: str
    license: str  # as its model card and repository state it; a person reads them before use
    experiments: tuple[str, ...]  # files of conf/experiment that start from it
    convert: bool = False  # in the custom-code layout, which `make convert` rewrites
    note: str = ""


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
    vision_tokens: tuple[str, ...]  # all that stand for visual input, which no completion may hold; some may be absent
    pixel_inputs: tuple[str, ...]  # outputs of the image processor that the forward pass takes
    lora_targets: tuple[str, ...]
    processor_files: tuple[str, ...]  # a checkpoint has at least one of these, with the image processor's settings
    published: tuple[Published, ...]


PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
APACHE = "Apache-2.0"
# The cards of InternVL3 name the "Qwen License" for this part; Qwen published Qwen2.5-7B under Apache-2.0.
INTERNVL_LICENSE = "MIT; language model Qwen2.5-7B: Apache-2.0 (the card says Qwen License)"
INTERNVL_RECIPES = ("internvl3", "internvl3_lora_1gpu")
QWEN_VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
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
            vision_tokens=QWEN_VISION_TOKENS,
            pixel_inputs=("pixel_values", "image_grid_thw"),
            lora_targets=QWEN_LORA_TARGETS,
            processor_files=PROCESSOR_FILES,
            published=(Published(hub_id="Qwen/Qwen2.5-VL-7B-Instruct", license=APACHE, experiments=("qwen2_5_vl",)),),
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
            vision_tokens=QWEN_VISION_TOKENS,
            pixel_inputs=("pixel_values", "image_grid_thw"),
            lora_targets=QWEN_LORA_TARGETS,
            processor_files=PROCESSOR_FILES,
            published=(Published(hub_id="Qwen/Qwen3-VL-8B-Instruct", license=APACHE, experiments=("qwen3_vl",)),),
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
            # Its language model is Qwen2.5's, whose tokenizer knows Qwen's vision tokens too.
            vision_tokens=("<img>", "</img>", "<IMG_CONTEXT>", "<video>", *QWEN_VISION_TOKENS),
            pixel_inputs=("pixel_values",),
            lora_targets=QWEN_LORA_TARGETS,
            processor_files=PROCESSOR_FILES,
            published=(
                Published(
                    hub_id="OpenGVLab/InternVL3-8B-hf",
                    license=INTERNVL_LICENSE,
                    experiments=INTERNVL_RECIPES,
                    note="after preference tuning (MPO): not the paper's starting point",
                ),
                Published(
                    hub_id="OpenGVLab/InternVL3-8B-Instruct",
                    license=INTERNVL_LICENSE,
                    experiments=INTERNVL_RECIPES,
                    convert=True,
                    note="the paper's",
                ),
            ),
        ),
    )
}


def family_of(model_type: str, folder: Path | None = None) -> Family:
    """The row of a Hugging Face `model_type`.

    Args:
        model_type: as `config.json` names it.
        folder: the checkpoint, where one is at hand; for the message only.

    Raises:
        ConfigError: the family is unknown, or the layout needs a conversion; the message says what to do.
    """
    if model_type == CUSTOM_LAYOUT:
        path = "<folder>" if folder is None else str(folder)
        raise ConfigError(
            f"{path} is in InternVL's custom-code layout (model type {CUSTOM_LAYOUT!r}), whose code is never run here; "
            f"rewrite it with: make convert MODEL={path} OUT={path}-native"
        )
    if model_type not in FAMILIES:
        raise ConfigError(f"model type {model_type!r} is not supported; known families: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
