"""Memory of one learner rank: what stays, and the most that a step adds to it.

Sums follow the ZeRO paper (arXiv 1910.02054, §3 and §5): with P weights, T of them trained, N ranks and e bytes of the
training dtype, weights take e·P (e·P/N at stage 3), gradients e·T (e·T/N from stage 2 on) and the optimizer 12·T/N:
float32 master weights and two moments. What DeepSpeed 0.19 holds beyond that is said at each sum.
"""

from __future__ import annotations

from dataclasses import dataclass

from mrpo.choices import Attention, Dtype
from mrpo.config import LearnerConfig
from mrpo.plan.activations import FLOAT32, SLICES, Activations, Load, Training, activations, logits_bytes, scoring_bytes
from mrpo.plan.architecture import Architecture
from mrpo.plan.memory import GIB, MIB, Memory, Part, largest
from mrpo.plan.parameters import ParameterCounts, count

BUCKET_ELEMENTS = 100_000_000  # as learner/zero_config.py sets both; a test compares them
PERSISTENT_ELEMENTS = 100_000  # on GPUs; 0 on CPU
LIVE_ELEMENTS = 1_000_000_000  # DeepSpeed's defaults: weights that ZeRO-3 keeps gathered,
SUB_GROUP_ELEMENTS = 1_000_000_000  # and those it updates at a time
NUM_MOMENTS = 2  # of AdamW
CONTEXT_BYTES = int(1.5 * GIB)  # estimate: CUDA's context, cuBLAS' workspace, NCCL's channels
PROCESS_BYTES = 3 * GIB  # estimate of main memory: Python with torch, DeepSpeed and transformers
IMAGE_CACHE_BYTES = GIB  # as learner/images.py bounds it


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """Everything about a rank that its memory depends on, beside the model's sizes."""

    learner: LearnerConfig
    num_ranks: int
    on_gpu: bool
    reference: bool  # a KL penalty is measured
    freeze_tower: bool
    freeze_projector: bool
    load: Load
    bucket_elements: int = BUCKET_ELEMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """One rank. Made by `rank_memory`."""

    resting: Memory  # on its device, between steps
    learning: Memory  # the most of a step
    publishing: Memory  # the most while weights are sent
    scoring: Memory  # the most of a forward pass alone, as at the parity gate
    saving: Memory  # the most while a checkpoint is written
    host: Memory  # in main memory, where the device is a GPU
    snapshot: int  # bytes of main memory that rank 0's node takes while a checkpoint is written beside training
    largest_tensor: int  # bytes
    counts: ParameterCounts
    activations: Activations


def training_of(settings: RankSettings, architecture: Architecture) -> Training:
    """What activations depend on."""
    learner, lora = settings.learner, settings.learner.lora
    bf16 = uses_bf16(learner, on_gpu=settings.on_gpu)
    full = lora.r == 0
    return Training(
        element=2 if bf16 else FLOAT32,
        checkpointing=learner.gradient_checkpointing,
        # On GPUs in bfloat16 a flash kernel takes a packed row whole.
        packed_copy=learner.attention == Attention.SDPA or not (settings.on_gpu and bf16),
        lora_rank=lora.r,
        lora_targets=lora.targets or architecture.family.lora_targets,
        # A GPU keeps one byte an element, a CPU the factor itself.
        dropout_mask=0 if lora.dropout == 0 else 1 if settings.on_gpu else 2 if bf16 else FLOAT32,
        tower=full and not settings.freeze_tower,
        projector=full and not (settings.freeze_projector and settings.freeze_tower),
    )


def uses_bf16(learner: LearnerConfig, *, on_gpu: bool) -> bool:
    """Whether weights and activations are bfloat16."""
    return learner.dtype == Dtype.BFLOAT16 or (learner.dtype == Dtype.AUTO and on_gpu)


def accumulated_element(learner: LearnerConfig, element: int) -> int:
    """Bytes of a number in the sum of gradients; as learner/zero_config.py has it."""
    in_float32 = learner.zero_stage == 3 or (learner.zero_stage == 2 and not learner.cpu_offload)
    return FLOAT32 if in_float32 else element


def rank_memory(architecture: Architecture, settings: RankSettings) -> RankMemory:
    """Bytes of one rank; all ranks are alike."""
    learner, lora, stage = settings.learner, settings.learner.lora, settings.learner.zero_stage
    training = training_of(settings, architecture)
    element, ranks = training.element, settings.num_ranks
    counts = count(
        architecture,
        lora_rank=lora.r,
        lora_targets=training.lora_targets,
        freeze_tower=settings.freeze_tower,
        freeze_projector=settings.freeze_projector,
        small_below=PERSISTENT_ELEMENTS if settings.on_gpu else 0,
    )
    trained = counts.trainable
    share = -(-trained // (ranks if stage else 1))  # of the optimizer's states
    weights = element * _held(counts, ranks, stage)
    reference = weights if settings.reference and not lora.r else 0
    optimizer = (3 if stage else 2) * FLOAT32 * share
    accumulated = accumulated_element(learner, element)
    flat_gradients = accumulated * share if stage == 3 else 0
    context = CONTEXT_BYTES if settings.on_gpu else 0
    buffers = element * settings.bucket_elements if stage == 3 else 0
    off = learner.cpu_offload
    largest_tensor = counts.largest * element
    resting = Memory(
        phase="between steps",
        parts={
            Part.WEIGHTS: 0 if off and stage == 3 else weights,
            Part.GRADIENTS: 0 if off else flat_gradients,
            Part.OPTIMIZER: 0 if off else optimizer,
            Part.REFERENCE: 0 if off and stage == 3 else reference,
            # ZeRO-2 with offload copies gradients out through a buffer as large as the largest.
            Part.BUFFERS: buffers + (largest_tensor if off and stage in (1, 2) else 0),
            Part.CONTEXT: context,
        },
    )
    host = Memory(
        phase="always",
        parts={
            Part.WEIGHTS: weights if off and stage == 3 else 0,
            # The sum, and a copy in float32 for the update.
            Part.GRADIENTS: (accumulated + FLOAT32) * share if off else 0,
            Part.OPTIMIZER: optimizer if off else 0,
            Part.REFERENCE: reference if off and stage == 3 else 0,
            Part.BUFFERS: element * share + largest_tensor if off and stage in (1, 2) else 0,
            Part.CACHES: IMAGE_CACHE_BYTES,
            Part.CONTEXT: PROCESS_BYTES,
        },
    )
    kept = activations(architecture, training, settings.load)
    return RankMemory(
        resting=resting,
        learning=largest(
            *_backward(architecture, settings, training, counts, kept, resting),
            _update(settings, training, trained, resting),
        ),
        publishing=_publish(settings, training, counts, resting),
        scoring=_score(architecture, settings, training, counts, resting),
        # One tensor at a time is gathered in float32: a master weight or a moment.
        saving=resting.plus("saving", buffers=FLOAT32 * counts.largest),
        host=host,
        snapshot=_snapshot(settings, training, counts),
        largest_tensor=largest_tensor,
        counts=counts,
        activations=kept,
    )


def _snapshot(settings: RankSettings, training: Training, counts: ParameterCounts) -> int:
    """As learner/snapshot.py copies it: float32 weights and moments of what is trained, and `hf/`.

    Frozen weights of `hf/` and the reference are copied from GPUs; on a CPU they are referred to, unless adapters are
    merged into them.
    """
    state = (1 + NUM_MOMENTS) * FLOAT32 * counts.trainable
    exported = counts.total if settings.on_gpu or settings.learner.lora.r else counts.trainable
    reference = counts.total if settings.on_gpu and settings.reference and not settings.learner.lora.r else 0
    return state + training.element * (exported + reference)


def _held(counts: ParameterCounts, ranks: int, stage: int) -> int:
    """Weights a rank holds between steps: at stage 3 its share, and small tensors whole."""
    if stage < 3:
        return counts.total
    return -(-(counts.total - counts.small) // ranks) + counts.small


def _backward(
    architecture: Architecture,
    settings: RankSettings,
    training: Training,
    counts: ParameterCounts,
    kept: Activations,
    resting: Memory,
) -> tuple[Memory, Memory]:
    """The head's backward pass, and the first layer's after it, which both hold all activations."""
    learner, stage, element = settings.learner, settings.learner.zero_stage, training.element
    accumulates = settings.load.num_micro_batches > 1
    own = -(-counts.trainable // settings.num_ranks)
    before = after = buffers = 0
    in_float32 = accumulated_element(learner, element) > element
    if stage == 0:
        before = after = counts.trainable * element
    elif stage == 1:
        before, after = counts.trainable * element, (counts.trainable + own) * element
    elif stage == 2 and in_float32:
        # One partition, to which micro-batches add.
        before, after = own * FLOAT32 * accumulates, own * FLOAT32
    elif stage == 2 and not learner.cpu_offload:
        # A micro-batch's gradients get a partition of their own, then are added to that of the former ones.
        before, after = own * element * accumulates, own * element * (1 + accumulates)
    if stage in (1, 2):
        overlapping = settings.on_gpu and stage == 2
        buffers = settings.bucket_elements * element * (2 if overlapping else 1)
    # On its way into the sum, a tensor's part is copied to float32.
    buffers += min(counts.largest, own) * FLOAT32 if in_float32 and not learner.cpu_offload else 0
    gathered = _gathered(settings, training, counts)
    logits = logits_bytes(
        architecture,
        settings.load,
        chunk_tokens=learner.logprob_chunk_tokens,
        element=element,
        plain_head=stage < 3,
        trains_head=not training.lora_rank,
    )
    head = 0 if training.lora_rank else (counts.head or counts.embedding) * element
    at_head = resting.plus(
        "backward, log-probs", gradients=before + head, activations=kept.kept, logits=logits, buffers=gathered
    )
    at_layer = resting.plus(
        "backward, layers",
        gradients=after + (head if stage else 0),
        activations=kept.kept + kept.working,
        logits=0,
        buffers=buffers + gathered,
    )
    return at_head, at_layer


def _gathered(settings: RankSettings, training: Training, counts: ParameterCounts) -> int:
    """Weights that ZeRO-3 makes whole for a pass.

    Alone, a rank's partition is the weight; gathering copies only what others hold, or what lies in main memory.
    """
    gathers = settings.learner.zero_stage == 3 and (settings.num_ranks > 1 or settings.learner.cpu_offload)
    return min(counts.total, LIVE_ELEMENTS) * training.element if gathers else 0


def _score(
    architecture: Architecture,
    settings: RankSettings,
    training: Training,
    counts: ParameterCounts,
    resting: Memory,
) -> Memory:
    """A full micro-batch forward."""
    tokens = min(settings.load.completion_tokens, settings.learner.logprob_chunk_tokens)
    logits = tokens * architecture.text.vocabulary
    return resting.plus(
        "scoring",
        activations=scoring_bytes(architecture, training, settings.load),
        logits=logits * training.element + 2 * logits * FLOAT32 // SLICES,
        buffers=_gathered(settings, training, counts),
    )


def _update(settings: RankSettings, training: Training, trained: int, resting: Memory) -> Memory:
    """The optimizer's step: gradients in one flat copy, and as float32."""
    stage, element = settings.learner.zero_stage, training.element
    if settings.learner.cpu_offload:
        return resting.plus("update")
    if stage == 0:
        return resting.plus("update", gradients=trained * element)
    own = -(-trained // settings.num_ranks)
    accumulated = accumulated_element(settings.learner, element)
    as_float = FLOAT32 if accumulated < FLOAT32 else 0
    if stage == 3:
        return resting.plus("update", buffers=min(own, SUB_GROUP_ELEMENTS) * (accumulated + as_float))
    if accumulated > element:
        return resting.plus("update", gradients=own * FLOAT32)
    return resting.plus("update", gradients=own * element, buffers=own * (element + as_float))


def _publish(settings: RankSettings, training: Training, counts: ParameterCounts, resting: Memory) -> Memory:
    """Buckets on their way, two of them; at stage 3 each tensor is gathered and copied."""
    buckets = 2 * int(settings.learner.bucket_mib * MIB)
    gathered = 2 * counts.largest * training.element if settings.learner.zero_stage == 3 else 0
    return resting.plus("sending weights", buffers=buckets + gathered)
