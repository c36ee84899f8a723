"""A norm and the router behind it, and what the experts want to know of the tokens."""

from __future__ import annotations

from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.moe import Routed, route
from dropless.ops.norm import layer_norm, rms_norm
from dropless.ops.registry import Op


@Op
def norm_route(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    down: Tensor | Fp8Tensor,  # noqa: ARG001 (other versions prepare for it)
    topk_ids: Tensor | None = None,
    *,
    centred: bool,
) -> tuple[Routed, Tensor]:
    """What `layer_norm` (`centred`) or `rms_norm` make of x and residual, and `route` of that; and
    the new residual [T, hidden].

    `down` are the matrices of the experts that are here, for which a version may quantise the
    tokens and group their pairs.
    """
    norm = layer_norm if centred else rms_norm
    normed, stream = norm.reference(x, residual, norm_weight, eps)
    chosen = route.reference(normed, router_weight, top_k, norm_p, topk_ids)
    return Routed(normed, *chosen), stream


@norm_route.register("cpu")
def norm_then_route(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    down: Tensor | Fp8Tensor,  # noqa: ARG001 (other versions prepare for it)
    topk_ids: Tensor | None = None,
    *,
    centred: bool,
) -> tuple[Routed, Tensor]:
    """By the two ops."""
    norm = layer_norm if centred else rms_norm
    normed, stream = norm(x, residual, norm_weight, eps)
    return Routed(normed, *route(normed, router_weight, top_k, norm_p, topk_ids)), stream


@norm_route.register_invariant("cpu")
@norm_route.register_invariant("cuda")
def norm_then_route_invariant(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    router_weight: Tensor,
    top_k: int,
    norm_p: float | None,
    down: Tensor | Fp8Tensor,  # noqa: ARG001 (other versions prepare for it)
    topk_ids: Tensor | None = None,
    *,
    centred: bool,
) -> tuple[Routed, Tensor]:
    norm = layer_norm if centred else rms_norm
    normed, stream = norm.invariant(x, residual, norm_weight, eps)
    chosen = route.invariant(normed, router_weight, top_k, norm_p, topk_ids)
    return Routed(normed, *chosen), stream
