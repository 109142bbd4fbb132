"""The policy as the learner runs it: from a micro-batch to the log-probs of its completion tokens.

Letters: B samples, L tokens of all of them, T completion tokens of the longest, N completion tokens of all samples,
H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from learner.attention import boundaries
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
        hidden = self._hidden_states(batch)  # [1, L, H]
        states = hidden[0].index_select(0, batch.predict_index)  # [N, H]
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
        layers = [_joined(layer) for layer in vision.deepstack_features] if "deepstack_features" in vision else []
        features = _joined(vision.pooler_output)
        arguments: dict[str, Any] = {}
        if batch.shows_image:
            chosen = features.index_select(0, batch.feature_index).to(embeds.dtype)
            embeds = embeds.masked_scatter(batch.image_mask[..., None], chosen)
            if layers:
                # Qwen3-VL adds features of intermediate vision layers to the first text layers.
                arguments["visual_pos_masks"] = batch.image_mask
                arguments["deepstack_visual_embeds"] = [layer.index_select(0, batch.feature_index) for layer in layers]
        else:
            # A blank image stands in, and its features count 0 times. The vision tower runs always, on every rank, also
            # where all of it is frozen: ZeRO-3 gathers its parameters in the forward pass, ZeRO-1 and 2 reduce its
            # gradients in the backward pass, and a rank that stays away leaves the others waiting.
            embeds = embeds + sum(part.sum() for part in (features, *layers)).to(embeds.dtype) * 0.0
        output = core.language_model(
            inputs_embeds=embeds,
            position_ids=batch.position_ids,
            use_cache=False,
            **boundaries(batch.lengths, batch.cu_seq_lens),
            **arguments,
        )
        states: Tensor = output.last_hidden_state
        return states


def _joined(features: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Features of all distinct images, one tensor or one an image → [image tokens of the distinct images, H]."""
    if not isinstance(features, Tensor):
        features = torch.cat(features)
    return features.flatten(0, -2)
