"""Config classes for InternVL's custom-code layout: with them vLLM's own support for it needs no code of a checkpoint.

Nothing trains on that layout; this serves to compare a conversion with its original.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from mrpo.families import CUSTOM_LAYOUT


class InternVisionConfig(PretrainedConfig):
    """The vision tower's part; every field comes from `config.json`."""

    model_type = "intern_vit_6b"


class InternVLChatConfig(PretrainedConfig):
    """The whole; its language model keeps the config class of its own family."""

    model_type = CUSTOM_LAYOUT

    def __init__(
        self, vision_config: dict[str, Any] | None = None, llm_config: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        """Take the two parts as `config.json` has them; vLLM's loader asks for an empty one too."""
        super().__init__(**settings)
        self.vision_config = InternVisionConfig(**(vision_config or {}))
        text = dict(llm_config or {"model_type": "qwen2"})
        self.text_config = AutoConfig.for_model(text.pop("model_type"), **text)


def register() -> None:
    """Make the model type known to transformers in this process. Safe to call again."""
    AutoConfig.register(CUSTOM_LAYOUT, InternVLChatConfig, exist_ok=True)
