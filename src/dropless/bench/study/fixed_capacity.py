"""A mixture-of-experts layer as it was built before dropless ones: every expert takes a fixed
number of tokens. What is beyond is dropped, what is missing is padded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dropless.ops.activation import silu_mul


def capacity_of(factor: float, num_tokens: int, experts: int, top_k: int) -> int:
    """Places of each expert: `factor` times its share if routing were even, rounded up; never more
    than there are tokens."""
    return min(num_tokens, math.ceil(factor * num_tokens * top_k / experts))


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Which place each pair of a token and an expert gets; the earlier tokens come first."""

    places: Tensor  # [T * top_k] int64, of E * capacity; those dropped have the one behind the last
    kept: Tensor  # [T * top_k] bool

    @classmethod
    def of(cls, topk_ids: Tensor, experts: int, capacity: int) -> Dispatch:
        """topk_ids: [T, top_k]. Nothing here waits for a GPU."""
        ids = topk_ids.flatten()
        by_expert = ids.argsort(stable=True)
        counts = torch.zeros(experts, dtype=torch.int64, device=ids.device)
        counts.scatter_add_(0, ids, torch.ones_like(ids))
        starts = counts.cumsum(0) - counts
        ranks = torch.empty_like(ids)
        ordinals = torch.arange(len(ids), device=ids.device)
        ranks[by_expert] = ordinals - starts[ids[by_expert]]
        kept = ranks < capacity
        return cls(torch.where(kept, ids * capacity + ranks, experts * capacity), kept)


def fixed_capacity_experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    capacity: int,
) -> Tensor:
    """What `dropless.ops.moe.fused_experts` computes, of the pairs that get a place: [T, hidden].
    Batched products over [experts, capacity, hidden], padding included."""
    (num_tokens, top_k), (experts, hidden, _) = topk_ids.shape, down.shape
    dispatch = Dispatch.of(topk_ids, experts, capacity)
    rows = x.new_zeros(experts * capacity + 1, hidden)  # the last is for what is dropped
    tokens = torch.arange(num_tokens, device=x.device).repeat_interleave(top_k)
    rows[dispatch.places] = x[tokens]
    batches = rows[:-1].view(experts, capacity, hidden)
    products = torch.bmm(batches, gate_up.mT)
    activated = silu_mul(products.flatten(0, 1)).view(experts, capacity, -1)
    rows[:-1] = torch.bmm(activated, down.mT).flatten(0, 1)
    weights = torch.where(dispatch.kept, topk_weights.flatten(), 0).to(x.dtype)
    # What is dropped reads some token's input, and counts nothing.
    made = rows[dispatch.places] * weights[:, None]
    return made.view(num_tokens, top_k, hidden).sum(1)
