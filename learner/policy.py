"""The policy as the learner runs it: from a micro-batch to the log-probs of its completion tokens.

Letters: B samples, L tokens of a padded sample, T completion tokens, N completion tokens of all samples,
H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from learner.inputs import MicroBatch
from learner.logprobs import token_logprobs


class Policy(nn.Module):
    """A Hugging Face vision-language model behind one forward pass.

    The completions of a group show one image. The vision tower runs once for each distinct image of a micro-batch and
    its features are handed to every sample that shows it, which is exact: features do not depend on the text.
    """

    def __init__(self, model: Any, *, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self._chunk_tokens = chunk_tokens

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy of the completion tokens, both [B, T] in nats as of `token_logprobs`; 0 on padding."""
        hidden = self._hidden_states(batch)  # [B, L, H]
        states = hidden.flatten(0, 1).index_select(0, batch.predict_index)  # [N, H]
        logprobs, entropy = token_logprobs(
            states, batch.targets, self.model.get_output_embeddings(), chunk_tokens=self._chunk_tokens
        )
        blank = logprobs.new_zeros(batch.completion_mask.shape)
        return (
            blank.masked_scatter(batch.completion_mask, logprobs),
            blank.masked_scatter(batch.completion_mask, entropy),
        )

    def _hidden_states(self, batch: MicroBatch) -> Tensor:
        core = self.model.model
        embeds = self.model.get_input_embeddings()(batch.input_ids)
        vision = core.get_image_features(**batch.pixels, return_dict=True)
        features = _select(vision.pooler_output, batch.feature_index).to(embeds.dtype)
        arguments: dict[str, Any] = {}
        if "deepstack_features" in vision:
            # Qwen3-VL adds features of intermediate vision layers to the first text layers.
            arguments["visual_pos_masks"] = batch.image_mask
            arguments["deepstack_visual_embeds"] = [
                _select(layer, batch.feature_index) for layer in vision.deepstack_features
            ]
        output = core.language_model(
            inputs_embeds=embeds.masked_scatter(batch.image_mask[..., None], features),
            position_ids=batch.position_ids,
            use_cache=False,
            **arguments,
        )
        states: Tensor = output.last_hidden_state
        return states


def _select(features: Tensor | tuple[Tensor, ...], index: Tensor) -> Tensor:
    """Features of all distinct images, one tensor or one an image → [image tokens of the micro-batch, H]."""
    if not isinstance(features, Tensor):
        features = torch.cat(features)
    return features.flatten(0, -2).index_select(0, index)
