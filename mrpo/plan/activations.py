"""Bytes that a forward pass keeps for its backward pass, and what works beside them: read off transformers' modules.

An operation keeps what its derivative needs: a matrix product its input, a product both factors, SiLU and GELU their
input, attention by SDPA or flash queries, keys, values, output and one number a head and token. No [L, L] matrix is
kept. Norms of the Qwen families calculate in float32 and keep a float32 copy and their output before the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

from mrpo.plan.architecture import Architecture, TextSizes, VisionSizes

FLOAT32 = 4
SLICES = 16  # of a chunk of logits, in learner/logprobs.py: what is calculated from logits exists for one at a time
SHARED_INPUT = {
    "q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "o_proj": "output",
    "gate_proj": "feed forward", "up_proj": "feed forward", "down_proj": "product",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The largest micro-batch of a rank. Made by `mrpo.plan.workload`, or by who knows it exactly."""

    tokens: int  # prompt and completion, packed
    completion_tokens: int
    images: int  # distinct ones
    image_tokens: int  # of all distinct images together
    num_micro_batches: int = 2  # of a step; from the second on gradients of the former are there


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What of the model is trained, and how. Made by `mrpo.plan.learner_memory`."""

    element: int  # bytes of a number
    checkpointing: bool
    packed_copy: bool  # SDPA sample after sample joins its outputs in a copy
    lora_rank: int
    lora_targets: tuple[str, ...]
    dropout_mask: int  # bytes an element of an adapter's input; 0: no dropout
    tower: bool  # trained
    projector: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes of one micro-batch."""

    kept: int  # until the backward pass of their layer
    working: int  # of the layer whose backward pass runs


def activations(architecture: Architecture, training: Training, load: Load) -> Activations:
    """What the micro-batch keeps, and the most that one layer's backward pass holds beside it."""
    text, vision = architecture.text, architecture.vision
    element = training.element
    patches = load.image_tokens * vision.merge**2
    rows = patches + _class_tokens(vision, patches)
    tower_layer = _vision_layer(architecture, training) * rows if training.tower else 0
    text_layer = _text_layer(text, training) * load.tokens
    ends = _ends(architecture, training, load, patches)
    gradient_flow = (2 * text.hidden + 3 * text.intermediate) * element * load.tokens
    if training.checkpointing:
        inputs = text.layers * text.hidden * load.tokens + (
            vision.layers * vision.hidden * rows if training.tower else 0
        )
        return Activations(kept=ends + inputs * element, working=max(text_layer + gradient_flow, 2 * tower_layer))
    return Activations(kept=ends + text.layers * text_layer + vision.layers * tower_layer, working=gradient_flow)


def scoring_bytes(architecture: Architecture, training: Training, load: Load) -> int:
    """The most that a forward pass without a backward pass holds, the head apart: one layer at a time."""
    vision = architecture.vision
    patches = load.image_tokens * vision.merge**2
    tower_layer = _vision_layer(architecture, training) * (patches + _class_tokens(vision, patches))
    text_layer = _text_layer(architecture.text, training) * load.tokens
    return _ends(architecture, training, load, patches) + max(text_layer, tower_layer)


def _class_tokens(vision: VisionSizes, patches: int) -> int:
    """One a tile, where images are cut into tiles."""
    return 0 if vision.tile is None else patches // (vision.tile // vision.patch) ** 2


def _text_layer(text: TextSizes, training: Training) -> int:
    """Bytes a token of one layer of the language model."""
    element, hidden = training.element, text.hidden
    queries, keys = text.heads * text.head_dim, text.kv_heads * text.head_dim
    attention = element * (2 * queries + 2 * keys) + FLOAT32 * text.heads
    if training.packed_copy and not (training.lora_rank and training.dropout_mask):
        attention += element * queries
    feed_forward = 3 * element * text.intermediate  # gate, its SiLU, up
    if training.lora_rank:
        # Frozen weights: norms keep no output before the scale and linear layers no input; adapters keep theirs.
        norms = 2 * FLOAT32 * hidden
        head_norms = FLOAT32 * (queries + keys)
        inputs = {
            "q_proj": hidden, "k_proj": hidden, "v_proj": hidden, "o_proj": queries,
            "gate_proj": hidden, "up_proj": hidden, "down_proj": text.intermediate,
        }  # fmt: skip
        targets = [name for name in inputs if name in training.lora_targets]
        # Dropout leaves each adapter an input of its own, and a mask; else the output of attention is there already.
        sources = {name: name if training.dropout_mask else SHARED_INPUT[name] for name in targets}
        sizes = {source: inputs[name] for name, source in sources.items() if source != "output"}
        adapters = sum(sizes.values()) * (element + training.dropout_mask)
        adapters += len(targets) * training.lora_rank * element
    else:
        norms = 2 * (FLOAT32 + 2 * element) * hidden
        head_norms = (FLOAT32 + element) * (queries + keys)
        adapters = element * text.intermediate  # the input of the last product
    return norms + attention + feed_forward + adapters + (head_norms if text.qk_norm else 0)


def _vision_layer(architecture: Architecture, training: Training) -> int:
    """Bytes a patch of one layer of the vision tower."""
    vision, element = architecture.vision, training.element
    hidden, intermediate = vision.hidden, vision.intermediate
    norms = 2 * (FLOAT32 + 2 * element if vision.rms_norm else 2 * element) * hidden
    if vision.tile:
        # Queries, keys, values, output, and the inputs of both layer scales.
        attention, feed_forward = 6 * hidden, 2 * intermediate
        norms += 2 * (FLOAT32 + element) * hidden if vision.qk_norm else 0
    else:
        # The joint product of queries, keys and values stays for the values; turned queries and keys; output, joined.
        attention, feed_forward = 7 * hidden, (4 if vision.rms_norm else 2) * intermediate
    return norms + element * (attention + feed_forward) + FLOAT32 * vision.heads


def _ends(architecture: Architecture, training: Training, load: Load, patches: int) -> int:
    """Bytes kept outside the layers: pixels, projector, embeddings, last norm and the states that predict."""
    text, vision, element = architecture.text, architecture.vision, training.element
    pixels = vision.channels * vision.frames * vision.patch**2 * patches
    kept = FLOAT32 * pixels
    if training.tower:
        kept += pixels * element if element < FLOAT32 else 0
        kept += vision.hidden * element * patches
    if training.projector:
        merged = _projector(vision, text, element) * load.image_tokens
        kept += merged * (1 + vision.deepstack)
    states = (FLOAT32 + 2 * element + element) * text.hidden
    rotary = 2 * text.head_dim * element
    completion = 2 * text.hidden * element  # states that predict, and their gradient
    return kept + (states + rotary) * load.tokens + completion * load.completion_tokens


def _projector(vision: VisionSizes, text: TextSizes, element: int) -> int:
    """Bytes an image token: norm, product, GELU, product."""
    merged = vision.hidden * vision.merge**2
    if vision.tile:
        return element * (2 * merged + 3 * text.hidden)
    norm = (FLOAT32 + 2 * element if vision.rms_norm else 2 * element) * merged
    return norm + element * (2 * merged + text.hidden)


def logits_bytes(
    architecture: Architecture, load: Load, *, chunk_tokens: int, element: int, plain_head: bool, trains_head: bool
) -> int:
    """The most that log-probs hold beyond the head's own gradient; bounds of `learner.logprobs.token_logprobs`.

    Args:
        architecture: the sizes.
        load: of the micro-batch.
        chunk_tokens: tokens whose logits exist at one time.
        element: bytes of a number.
        plain_head: the head's weight is at hand (ZeRO 0 to 2).
        trains_head: it gets a gradient.
    """
    tokens = min(load.completion_tokens, chunk_tokens)
    vocabulary = architecture.text.vocabulary
    chunk = tokens * vocabulary * element
    statistics = 3 * tokens * vocabulary * FLOAT32 // SLICES
    if load.completion_tokens <= chunk_tokens:
        return 2 * chunk + statistics
    head = vocabulary * architecture.text.hidden * element if trains_head else 0
    return (chunk if plain_head else max(2 * chunk, 2 * head)) + statistics
