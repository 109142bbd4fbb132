"""Tokens a second through forward and backward pass, samples packed into one row against samples padded to the longest.

Both sides compute the same log-probs of the same completions of a toy Qwen2.5-VL, with the same budget of tokens for a
micro-batch, padding included where there is padding. The padded side is fair: it sorts by length first, so that a
micro-batch holds samples of about one length. Lengths are spread as those of reasoning models are: lognormal.
One thread, timed by the processor's clock, which other work on the machine disturbs less than the wall's.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from learner.images import ImageStore
from learner.inputs import InputBuilder, MicroBatch
from learner.logprobs import token_logprobs
from learner.model import flatten_patch_convolutions, load_model
from learner.policy import Policy
from mrpo.batching import plan_micro_batches
from mrpo.families import family_of
from mrpo.phantom.toy_models import build_toy_model
from mrpo.prompts import chat_messages
from mrpo.types import ScoreSample

logger = logging.getLogger("bench")
FAMILY = family_of("qwen2_5_vl")
NUM_GROUPS, GROUP_SIZE = 4, 8
MEDIAN_TOKENS, SPREAD, MOST_TOKENS = 200, 0.6, 1500  # of a completion; SPREAD is the deviation of its logarithm
BUDGETS = (2048, 8192)
ROUNDS = 3
CHUNK_TOKENS = 2048
MOST_DIFFERENCE = 1e-4  # nats, between the two sides' log-probs


def report() -> bool:
    """Log both rates and their ratio for each budget; False where the two sides do not agree."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        samples, policy, plain, inputs = _world(Path(name))
        lengths = [len(sample.prompt_token_ids) + len(sample.completion_token_ids) for sample in samples]
        low, middle, high = statistics.quantiles(lengths, n=4)
        logger.info("%d samples of %d to %d tokens, quartiles %d, %d, %d", len(samples), min(lengths), max(lengths),
                    low, middle, high)  # fmt: skip
        agree = [_compare(samples, lengths, policy, plain, inputs, budget) for budget in BUDGETS]
    return all(agree)


def _compare(
    samples: Sequence[ScoreSample],
    lengths: Sequence[int],
    policy: Policy,
    plain: Any,
    inputs: InputBuilder,
    budget: int,
) -> bool:
    packed_plan = plan_micro_batches(lengths, num_ranks=1, tokens_per_micro_batch=budget)[0]
    padded_plan = _plan_padded(lengths, budget)
    packed_batches = [inputs.build([samples[index] for index in part]) for part in packed_plan]
    padded_batches = [inputs.build([samples[index] for index in part]) for part in padded_plan]
    sides: dict[str, Callable[[], list[Tensor]]] = {
        "packed": lambda: [_backward(policy(batch)[0]) for batch in packed_batches],
        "padded": lambda: [_backward(_padded(plain, batch)) for batch in padded_batches],
    }
    sums = {name: run() for name, run in sides.items()}  # warm-up
    by_sample = {
        name: torch.cat(sums[name])[torch.tensor([index for part in plan for index in part]).argsort()]
        for name, plan in (("packed", packed_plan), ("padded", padded_plan))
    }
    difference = float((by_sample["packed"] - by_sample["padded"]).abs().max()) / max(lengths)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):  # in turn, so that what else the machine does falls on both
        for name, run in sides.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    rates = {name: sum(lengths) / statistics.median(times) for name, times in seconds.items()}
    ratios = [padded / packed for packed, padded in zip(seconds["packed"], seconds["padded"], strict=True)]
    wasted = 1 - sum(lengths) / sum(max(lengths[i] for i in part) * len(part) for part in padded_plan)
    logger.info(
        "budget %d: packed %d tokens a CPU second in %d micro-batches, padded %d in %d (%.0f %% padding); "
        "ratio %.2f, of rounds %.2f to %.2f; log-probs differ by at most %.0e a token",
        budget, rates["packed"], len(packed_plan), rates["padded"], len(padded_plan), 100 * wasted,
        statistics.median(ratios), min(ratios), max(ratios), difference,
    )  # fmt: skip
    return difference <= MOST_DIFFERENCE


def _backward(logprobs: Tensor) -> Tensor:
    """[B] summed log-probs of each sample, after their backward pass."""
    logprobs.sum().backward()
    return logprobs.detach().sum(1)


def _plan_padded(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Longest first, as many as fit when padded to the first."""
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if parts and lengths[parts[-1][0]] * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts


def _padded(model: Any, batch: MicroBatch) -> Tensor:
    """[B, T] log-probs as `Policy` gives them, from samples padded on the right, where a causal mask hides it."""

    def rows(tensor: Tensor) -> Tensor:
        return pad_sequence(list(torch.split(tensor, list(batch.lengths))), batch_first=True)

    image_mask = rows(batch.image_mask[0])
    features = torch.cat(model.model.get_image_features(**batch.pixels, return_dict=True).pooler_output)
    embeds = model.get_input_embeddings()(rows(batch.input_ids[0]))
    hidden = model.model.language_model(
        inputs_embeds=embeds.masked_scatter(image_mask[..., None], features.index_select(0, batch.feature_index)),
        position_ids=torch.stack([rows(coordinate[0]) for coordinate in batch.position_ids]),
        use_cache=False,
    ).last_hidden_state
    predicts = torch.zeros(batch.input_ids.shape[1], dtype=torch.bool)
    predicts[batch.predict_index] = True
    states = hidden[rows(predicts)]
    logprobs, _ = token_logprobs(states, batch.targets, model.get_output_embeddings(), chunk_tokens=CHUNK_TOKENS)
    return logprobs.new_zeros(batch.completion_mask.shape).masked_scatter(batch.completion_mask, logprobs)


def _world(folder: Path) -> tuple[list[ScoreSample], Policy, Any, InputBuilder]:
    build_toy_model(FAMILY.model_type, folder / "model", corpus=["Where is the finding of the liver?"] * 4, seed=0)
    processor = getattr(transformers, FAMILY.processor_class).from_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    samples = []
    for group in range(NUM_GROUPS):
        image = folder / f"{group}.png"
        Image.fromarray(rng.integers(0, 255, (84, 84, 3), dtype=np.uint8)).save(image)
        messages = chat_messages("Where is the finding of the liver?", FAMILY)
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = list(processor(text=[text], images=[[Image.open(image)]])["input_ids"][0])
        for member in range(GROUP_SIZE):
            length = min(MOST_TOKENS, max(8, int(rng.lognormal(np.log(MEDIAN_TOKENS), SPREAD))))
            ids = rng.integers(0, 200, length).tolist()
            samples.append(
                ScoreSample(
                    key=f"{group}#{member}", image=str(image), prompt_token_ids=prompt, completion_token_ids=ids
                )
            )
    model = load_model(str(folder / "model"), FAMILY, dtype=torch.float32, device=torch.device("cpu"))
    plain = getattr(transformers, FAMILY.model_class).from_pretrained(folder / "model").train()
    flatten_patch_convolutions(plain)
    inputs = InputBuilder(model, ImageStore(processor, FAMILY, max_pixels=10_000))
    return samples, Policy(model, chunk_tokens=CHUNK_TOKENS), plain, inputs
