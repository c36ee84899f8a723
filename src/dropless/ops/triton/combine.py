"""The weighted sum of what a token's experts made."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.moe import ExpertOutputs, combine
from dropless.ops.triton.launch import after_previous, early_launch

_COLUMNS = 1024


@triton.jit
def weighted_sum(
    made_ptr, places_ptr, topk_weights_ptr, ids_ptr, token, columns, inside, hidden, num_experts,
    TOP_K: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    """float32, of these columns of one token. Where the rows are is on its way for all choices
    before the first row, and all rows before the first product."""
    are_here, rows, weights = tl.tuple(()), tl.tuple(()), tl.tuple(())
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        expert = tl.load(ids_ptr + pair)
        row = tl.load(places_ptr + pair) if PLACED else pair
        are_here = are_here + ((expert >= 0) & (expert < num_experts),)  # noqa: RUF005
        rows = rows + (row,)  # noqa: RUF005 (Triton unpacks nothing)
        weights = weights + (tl.load(topk_weights_ptr + pair),)  # noqa: RUF005
    parts = tl.tuple(())
    for choice in tl.static_range(TOP_K):
        at = made_ptr + rows[choice].to(tl.int64) * hidden + columns
        parts = parts + (tl.load(at, inside & are_here[choice], 0.0),)  # noqa: RUF005
    total = tl.zeros(columns.shape, tl.float32)
    for choice in tl.static_range(TOP_K):
        total += parts[choice].to(tl.float32) * weights[choice].to(tl.float32)
    return total


@triton.jit
def row_or_sum(
    x_ptr, places_ptr, topk_weights_ptr, ids_ptr, token, columns, inside, hidden, num_experts,
    TOP_K: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    """These columns of one token of x; with TOP_K, of what its experts made, summed and rounded as
    between two kernels. Arguments as from `operands_of`."""
    if TOP_K > 0:
        total = weighted_sum(
            x_ptr, places_ptr, topk_weights_ptr, ids_ptr, token, columns, inside, hidden,
            num_experts, TOP_K, PLACED,
        )  # fmt: skip
        return total.to(x_ptr.dtype.element_ty)
    return tl.load(x_ptr + token.to(tl.int64) * hidden + columns, inside, 0.0)


def operands_of(x: Tensor | ExpertOutputs) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    """Rows, their places, weights and ids, the numbers of experts and of choices; of a plain tensor
    itself in place of what is not read, and no choices."""
    if isinstance(x, Tensor):
        x = x.contiguous()
        return x, x, x, x, 0, 0
    places = x.made if x.places is None else x.places
    return x.made, places, x.topk_weights, x.topk_ids, x.num_experts, x.topk_ids.shape[1]


@triton.jit
def _combine_kernel(
    made_ptr, places_ptr, topk_weights_ptr, ids_ptr, out_ptr, hidden, num_experts,
    TOP_K: tl.constexpr, PLACED: tl.constexpr, COLUMNS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    after_previous(EARLY)
    token = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < hidden
    total = weighted_sum(
        made_ptr, places_ptr, topk_weights_ptr, ids_ptr, token, columns, inside, hidden,
        num_experts, TOP_K, PLACED,
    )  # fmt: skip
    tl.store(out_ptr + token.to(tl.int64) * hidden + columns, total, inside)


@combine.register("cuda")
@combine.register_invariant("cuda")
def combine_cuda(outputs: ExpertOutputs) -> Tensor:
    made, places = outputs.made, outputs.places
    (num_tokens, top_k), hidden = outputs.topk_ids.shape, made.shape[1]
    out = torch.empty(num_tokens, hidden, dtype=made.dtype, device=made.device)
    _combine_kernel[(num_tokens, triton.cdiv(hidden, _COLUMNS))](
        made, made if places is None else places, outputs.topk_weights, outputs.topk_ids, out,
        hidden, outputs.num_experts, TOP_K=top_k, PLACED=places is not None, COLUMNS=_COLUMNS,
        num_warps=4, **early_launch(made),
    )  # fmt: skip
    return out
