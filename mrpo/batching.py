"""Which sample goes to which rank and micro-batch. Pure arithmetic: no torch."""

from __future__ import annotations

from collections.abc import Sequence

from mrpo.errors import UserError

# Tokens of a sample whose attention costs as much as all its matrix products: about 12 times the hidden size of a
# transformer, here that of an 8B model. Only the balance depends on it.
QUADRATIC_TOKENS = 49_152
RESOLUTION = 256  # the largest cost of a micro-batch is minimised to this fraction of itself


def plan_micro_batches(lengths: Sequence[int], *, num_ranks: int, tokens_per_micro_batch: int) -> list[list[list[int]]]:
    """Distribute samples so that every rank runs equally many micro-batches of about equal cost.

    The tokens of a micro-batch, which are all it computes, never exceed the budget. Balanced is what they cost: linear
    layers in proportion to the tokens, attention to each sample's square. The plan depends on the lengths alone.

    Args:
        lengths: tokens of each sample, prompt and completion.
        num_ranks: learner ranks.
        tokens_per_micro_batch: the budget.

    Returns:
        rank → micro-batch → sample indices, each sample once, the longest first. Collectives need the same number of
        micro-batches on every rank; where there are fewer samples than micro-batches, the last ones are empty lists,
        and a rank runs a dummy there. Micro-batches that run at the same time on all ranks cost about the same.

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
    costs = [length * (QUADRATIC_TOKENS + length) for length in lengths]
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    fullest = _first_fit(longest_first, lengths, costs, tokens_per_micro_batch, sum(costs))
    num_micro_batches = -(-len(fullest) // num_ranks)
    num = num_micro_batches * num_ranks
    micro_batches = _even(fullest, longest_first, lengths, costs, tokens_per_micro_batch, num)
    return _deal(_split_up_to(num, micro_batches, costs), costs, num_ranks, num_micro_batches)


def _first_fit(
    order: Sequence[int], lengths: Sequence[int], costs: Sequence[int], budget: int, cap: int
) -> list[list[int]]:
    """Each sample into the first micro-batch with room for its tokens within `budget` and its cost within `cap`."""
    micro_batches: list[list[int]] = []
    room: list[tuple[int, int]] = []  # tokens and cost that still fit
    for index in order:
        length, cost = lengths[index], costs[index]
        for number, (tokens_left, cost_left) in enumerate(room):
            if length <= tokens_left and cost <= cost_left:
                micro_batches[number].append(index)
                room[number] = (tokens_left - length, cost_left - cost)
                break
        else:
            micro_batches.append([index])
            room.append((budget - length, cap - cost))
    return micro_batches


def _even(
    fullest: list[list[int]],
    order: Sequence[int],
    lengths: Sequence[int],
    costs: Sequence[int],
    budget: int,
    num: int,
) -> list[list[int]]:
    """At most `num` micro-batches whose largest cost is about as small as first-fit allows (multifit scheduling).

    Args:
        fullest: a packing that obeys the budget alone.
    """
    best = fullest
    high = max((_total(batch, costs) for batch in fullest), default=0)
    low = max(max(costs, default=0), sum(costs) // num if num else 0)
    while high - low > low // RESOLUTION:
        cap = (low + high) // 2
        found = _first_fit(order, lengths, costs, budget, cap)
        if len(found) <= num:
            best, high = found, cap
        else:
            low = cap + 1
    return best


def _split_up_to(num: int, micro_batches: list[list[int]], costs: Sequence[int]) -> list[list[int]]:
    """Halve the costliest until there are `num`; empty ones where no two samples are together any more."""
    parts = list(micro_batches)
    while len(parts) < num:
        largest = max(parts, key=lambda batch: (len(batch) > 1, _total(batch, costs)), default=[])
        if len(largest) < 2:
            parts.append([])
            continue
        # Every other sample of the descending order: both halves cost about the same.
        parts.remove(largest)
        parts += [largest[0::2], largest[1::2]]
    return parts


def _deal(micro_batches: list[list[int]], costs: Sequence[int], num_ranks: int, num_each: int) -> list[list[list[int]]]:
    """The costliest of all ranks run first, together; of those the costliest goes to the rank with the least so far."""
    plan: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    costliest_first = sorted(micro_batches, key=lambda batch: (-_total(batch, costs), batch))
    for turn in range(num_each):
        together = costliest_first[turn * num_ranks : (turn + 1) * num_ranks]
        for batch, rank in zip(together, sorted(range(num_ranks), key=lambda r: (loads[r], r)), strict=True):
            plan[rank].append(batch)
            loads[rank] += _total(batch, costs)
    return plan


def _total(batch: Sequence[int], costs: Sequence[int]) -> int:
    return sum(costs[index] for index in batch)
