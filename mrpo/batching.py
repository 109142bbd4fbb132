"""Which sample goes to which rank and micro-batch. Pure arithmetic: no torch."""

from __future__ import annotations

from collections.abc import Sequence

from mrpo.errors import UserError


def plan_micro_batches(lengths: Sequence[int], *, num_ranks: int, tokens_per_micro_batch: int) -> list[list[list[int]]]:
    """Distribute samples so that every rank runs equally many micro-batches of about equal total length.

    The cost of a micro-batch is its longest sample times its number of samples, padding included, and never exceeds the
    budget. The plan depends on the lengths alone.

    Args:
        lengths: tokens of each sample, prompt and completion.
        num_ranks: learner ranks.
        tokens_per_micro_batch: the budget.

    Returns:
        rank → micro-batch → sample indices, each sample once. Collectives need the same number of micro-batches on
        every rank; where there are fewer samples than micro-batches, the last ones are empty lists, and a rank runs a
        dummy there.

    Raises:
        UserError: a sample alone exceeds the budget.
    """
    assert num_ranks >= 1
    for index, length in enumerate(lengths):
        if length < 1:
            raise UserError(f"sample {index} has {length} tokens; expected at least 1")
        if length > tokens_per_micro_batch:
            raise UserError(
                f"sample {index} has {length} tokens, more than learner.tokens_per_micro_batch="
                f"{tokens_per_micro_batch}; raise it, or lower rollout.max_new_tokens or model.max_pixels"
            )
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    fewest = len(_pack(longest_first, lengths, tokens_per_micro_batch, sum(lengths)))
    num_micro_batches = -(-fewest // num_ranks)
    micro_batches = _even_pack(longest_first, lengths, tokens_per_micro_batch, num_micro_batches * num_ranks)
    return _deal(micro_batches, lengths, num_ranks, num_micro_batches)


def _pack(order: Sequence[int], lengths: Sequence[int], budget: int, cap: int) -> list[list[int]]:
    """Fill micro-batches in order: padded cost within `budget`, total tokens within `cap` unless it is one sample."""
    micro_batches: list[list[int]] = []
    longest = total = 0
    for index in order:
        length = lengths[index]
        if micro_batches and longest * (len(micro_batches[-1]) + 1) <= budget and total + length <= cap:
            micro_batches[-1].append(index)
            total += length
        else:
            micro_batches.append([index])
            longest = total = length
    return micro_batches


def _even_pack(order: Sequence[int], lengths: Sequence[int], budget: int, num: int) -> list[list[int]]:
    """At most `num` micro-batches whose largest total is as small as packing in order allows, split up to `num`."""
    low, high = 1, max(1, sum(lengths))
    while low < high:
        cap = (low + high) // 2
        if len(_pack(order, lengths, budget, cap)) <= num:
            high = cap
        else:
            low = cap + 1
    micro_batches = _pack(order, lengths, budget, low)
    while len(micro_batches) < num:
        largest = max(micro_batches, key=lambda batch: (len(batch) > 1, _tokens(batch, lengths)), default=[])
        if len(largest) < 2:
            micro_batches.append([])
            continue
        # Every other sample of the descending order: both halves weigh about the same.
        micro_batches.remove(largest)
        micro_batches += [largest[0::2], largest[1::2]]
    return micro_batches


def _deal(
    micro_batches: list[list[int]], lengths: Sequence[int], num_ranks: int, num_each: int
) -> list[list[list[int]]]:
    """Give every rank `num_each` micro-batches, the next largest always to the rank with the fewest tokens."""
    plan: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for batch in sorted(micro_batches, key=lambda batch: (-_tokens(batch, lengths), batch)):
        rank = min((r for r in range(num_ranks) if len(plan[r]) < num_each), key=lambda r: (loads[r], r))
        plan[rank].append(batch)
        loads[rank] += _tokens(batch, lengths)
    return plan


def _tokens(batch: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[index] for index in batch)
