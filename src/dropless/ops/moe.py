"""The mixture-of-experts layer: which experts a token goes to, and what they make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dropless.ops.activation import silu_mul
from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.linear import linear
from dropless.ops.registry import Op


@Op
def route(
    x: Tensor,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    topk_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`(topk_weights [T, top_k] in x's dtype, topk_ids [T, top_k] int64)`, largest first.

    The router's scores, x [T, hidden] times router_weight [E, hidden], are in x's dtype; their
    softmax over all experts is in float32, for in bfloat16 close experts would tie and another
    one be chosen. The weights are divided by their p-norm of order `norm_p`, if there is one.
    With `topk_ids`, contiguous, the ids are written there.
    """
    return route_by(F.linear, x, router_weight, top_k, norm_p, topk_ids)


def route_by(
    product: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    topk_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`route` with this product for the scores."""
    probabilities = product(x, router_weight).softmax(-1, dtype=torch.float32)
    weights, ids = probabilities.topk(top_k, dim=-1)
    if topk_ids is not None:
        ids = topk_ids.copy_(ids)
    if norm_p is not None:
        weights = weights / torch.linalg.vector_norm(weights, ord=norm_p, dim=-1, keepdim=True)
    return weights.to(x.dtype), ids


@dataclass(frozen=True, slots=True, eq=False)
class Grouping:
    """(token, choice) pairs in the order of their experts. Pairs of experts outside 0 .. E - 1 are
    in no group; where they stand is not defined."""

    pairs: Tensor  # [T * top_k] int32, grouped: token * top_k + choice
    places: Tensor  # [T * top_k] int32: where each pair stands in `pairs`
    offsets: Tensor  # [EXPERTS + 1] int32: where each expert's pairs begin; EXPERTS >= E


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """Tokens and their experts, with what is already known of them. It has x's device."""

    x: Tensor  # [T, hidden]
    topk_weights: Tensor  # [T, top_k]
    topk_ids: Tensor  # [T, top_k]
    quantized: Fp8Tensor | None = None  # x in 8 bits, a scale a token
    grouping: Grouping | None = None

    @property
    def device(self) -> torch.device:
        return self.x.device

    def for_experts_from(self, first: int) -> Routed:
        """With the expert `first` as number 0."""
        ids = self.topk_ids - first if first else self.topk_ids
        return Routed(self.x, self.topk_weights, ids, self.quantized)


@Op
def fused_experts(
    x: Tensor,
    gate_up: Tensor | Fp8Tensor,
    down: Tensor | Fp8Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
) -> Tensor:
    """Every token through all of its experts, however many chose the same: [T, hidden].

    Token t gives the sum over j of topk_weights[t, j] * E(x[t]), where expert E = topk_ids[t, j] is
    x -> down @ (silu(gate x) * (up x)). The sum is in float32, the rest in x's dtype. With 8-bit
    weights the products are those of `linear`: x[t], and silu(gate x) * (up x) of each pair of
    token and expert, are quantised, each with its own scale.

    Args:
        x: [T, hidden].
        gate_up: [E, 2 * width, hidden], gate first.
        down: [E, hidden, width]; unless it is an `Fp8Tensor`, it may be a transposed view of a
            contiguous [E, width, hidden].
        topk_weights, topk_ids: [T, top_k]; the ids of one token are distinct. An id outside
            0 .. E - 1, such as that of an expert of another rank, contributes nothing.
    """
    return fused_experts_by(
        linear.reference, silu_mul.reference, x, gate_up, down, topk_weights, topk_ids
    )


def fused_experts_by(
    product: Callable[[Tensor, Tensor | Fp8Tensor], Tensor],
    activation: Callable[[Tensor], Tensor],
    x: Tensor,
    gate_up: Tensor | Fp8Tensor,
    down: Tensor | Fp8Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
) -> Tensor:
    """`fused_experts` expert by expert, with this product and this activation."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in torch.unique(topk_ids).tolist():
        if not 0 <= expert < gate_up.shape[0]:
            continue
        tokens, choice = torch.where(topk_ids == expert)
        made = product(activation(product(x[tokens], gate_up[expert])), down[expert])
        out.index_add_(0, tokens, made.float() * topk_weights[tokens, choice, None])
    return out.to(x.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class ExpertOutputs:
    """What the experts of every token made, before the weighted sum (`combine`). It has the shape
    and the device of that sum."""

    made: Tensor  # [T * top_k, hidden], a row for each pair of token and expert
    places: Tensor | None  # [T * top_k] int32: the row of each pair; None: its own
    topk_weights: Tensor  # [T, top_k]
    topk_ids: Tensor  # [T, top_k]; the row of one outside 0 .. num_experts - 1 is not defined
    num_experts: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.topk_ids.shape[0], self.made.shape[1]

    @property
    def device(self) -> torch.device:
        return self.made.device


@Op
def combine(outputs: ExpertOutputs) -> Tensor:
    """Token t gives the sum over j of topk_weights[t, j] times its row for expert topk_ids[t, j],
    in float32; an expert that is not here contributes nothing: [T, hidden] in the rows' dtype."""
    num_tokens, top_k = outputs.topk_ids.shape
    is_here = (outputs.topk_ids >= 0) & (outputs.topk_ids < outputs.num_experts)
    places = outputs.places
    if places is None:
        places = torch.arange(num_tokens * top_k, device=outputs.device)
    rows = outputs.made[places.view(num_tokens, top_k).where(is_here, 0)].float()
    rows = rows.masked_fill(~is_here[..., None], 0.0) * outputs.topk_weights.float()[..., None]
    return rows.sum(1).to(outputs.made.dtype)


combine.register_invariant("cpu")(combine.reference)


def combined(x: Tensor | ExpertOutputs) -> Tensor:
    """[T, hidden], whether the sum was made before or is made now."""
    return x if isinstance(x, Tensor) else combine(x)


@Op
def unsummed_experts(
    routed: Routed, gate_up: Tensor | Fp8Tensor, down: Tensor | Fp8Tensor
) -> Tensor | ExpertOutputs:
    """`fused_experts` of routed tokens, whose last sum may be left to the norm that follows."""
    return fused_experts.reference(routed.x, gate_up, down, routed.topk_weights, routed.topk_ids)


@unsummed_experts.register_invariant("cpu")
@unsummed_experts.register_invariant("cuda")
def summed_experts(routed: Routed, gate_up: Tensor | Fp8Tensor, down: Tensor | Fp8Tensor) -> Tensor:
    """With the sum made, whatever is known of the tokens."""
    return fused_experts.invariant(routed.x, gate_up, down, routed.topk_weights, routed.topk_ids)
