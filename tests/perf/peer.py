"""The peer of `make bench`: one GRPO-shaped step in plain transformers, without engine, judge or sync."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mrpo.compose import compose_config
from mrpo.data.load import load_dataset
from mrpo.families import family_of
from mrpo.prompts import chat_messages


def time_peer_steps(folder: Path, *, num_steps: int) -> list[float]:
    """Seconds of `num_steps` steps of 8 prompts × 8 completions, after two that are not counted.

    A step samples with `generate` and makes one AdamW update with a frozen reference. All prompts of a step ask one
    question, so that the batch needs no left padding: the peer gets the easier work.
    """
    config = compose_config([])
    examples = load_dataset(config).train
    model = AutoModelForImageTextToText.from_pretrained(folder)
    reference = copy.deepcopy(model).eval()
    processor = AutoProcessor.from_pretrained(folder)
    family = family_of(model.config.model_type)
    tokenizer = processor.tokenizer
    image_id = tokenizer.convert_tokens_to_ids(family.image_token)
    end_of_turn = tokenizer.convert_tokens_to_ids(family.end_of_turn)
    banned = [token for token in tokenizer.added_tokens_decoder if token != end_of_turn]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    question = examples[0].question
    same = [example for example in examples if example.question == question]
    prompt = processor.apply_chat_template(
        chat_messages(question, family, terse=True), add_generation_prompt=True, tokenize=False
    )
    size, group = config.rollout.prompts_per_step, config.rollout.group_size
    seconds: list[float] = []
    for step in range(num_steps + 2):
        started = time.perf_counter()
        batch = same[step * size % len(same) :][:size]
        images = [Image.open(example.image).convert("RGB") for example in batch for _ in range(group)]
        inputs = dict(processor(text=[prompt] * len(images), images=images, return_tensors="pt"))
        with torch.no_grad():
            tokens = model.eval().generate(
                **inputs,
                max_new_tokens=config.rollout.max_new_tokens,
                do_sample=True,
                top_k=0,
                suppress_tokens=banned,
                eos_token_id=end_of_turn,
                pad_token_id=tokenizer.pad_token_id,
            )
        length = inputs["input_ids"].shape[1]
        completion = tokens[:, length:]
        mask = (completion != tokenizer.pad_token_id).float()
        inputs |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        inputs["mm_token_type_ids"] = (tokens == image_id).long()
        logprobs = _completion_logprobs(model.train(), inputs, completion)
        with torch.no_grad():
            ref_logprobs = _completion_logprobs(reference, inputs, completion)
        advantages = torch.randn(len(completion), 1)
        delta = ref_logprobs - logprobs
        loss = -(logprobs - logprobs.detach()).exp() * advantages + 0.04 * (delta.exp() - delta - 1)
        ((loss * mask).sum(1) / mask.sum(1)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return seconds[2:]


def _completion_logprobs(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], completion: torch.Tensor
) -> torch.Tensor:
    """[B, T] log-probs of the completion's tokens."""
    logits = model(**inputs, logits_to_keep=completion.shape[1] + 1).logits[:, :-1]
    return torch.log_softmax(logits, -1).gather(2, completion[:, :, None]).squeeze(2)
