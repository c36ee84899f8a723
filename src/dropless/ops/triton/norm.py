"""Norms in one pass over memory, with what stands before them (the sum over a token's experts, the
residual stream) and what may stand behind (quantisation). A program has one token and does with it
what it would do with it alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.moe import ExpertOutputs
from dropless.ops.norm import layer_norm, rms_norm
from dropless.ops.triton.combine import operands_of, row_or_sum
from dropless.ops.triton.fp8 import scale_of, to_fp8
from dropless.ops.triton.launch import after_previous, early_launch, warps_of_row


@triton.jit
def stream_with(x, residual):
    """The residual stream with x in it, in x's type."""
    return (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)


@triton.jit
def norm_of(wide, weight, inside, hidden, eps, CENTRED: tl.constexpr):
    """The norm of one token's stream, of which `hidden` elements are `inside`, in float32: by its
    deviation if CENTRED, else by its root mean square."""
    mean, scale = norm_statistics(wide, inside, hidden, eps, CENTRED)
    return normed_by(wide, mean, scale, weight)


@triton.jit
def norm_statistics(wide, inside, hidden, eps, CENTRED: tl.constexpr):
    """What the norm subtracts from each element of the stream, and what it multiplies by then."""
    mean = 0.0
    if CENTRED:
        mean = tl.sum(wide, 0) / hidden
        wide = tl.where(inside, wide - mean, 0.0)
    return mean, tl.rsqrt(tl.sum(wide * wide, 0) / hidden + eps)


@triton.jit
def normed_by(wide, mean, scale, weight):
    """The norm of these elements, by the statistics of all."""
    return (wide - mean) * scale * weight.to(tl.float32)


@triton.jit
def _norm_kernel(
    x_ptr, places_ptr, topk_weights_ptr, ids_ptr, residual_ptr, weight_ptr,
    summed_ptr, normed_ptr, values_ptr, scales_ptr, hidden, num_experts, eps,
    TOP_K: tl.constexpr, PLACED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, CENTRED: tl.constexpr,
    NORMED: tl.constexpr, QUANTIZED: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token a program. The weight is on its way before the kernel that makes x has ended. With
    TOP_K, x is what the token's experts made."""
    token = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    at = token.to(tl.int64) * hidden + columns
    weight = tl.load(weight_ptr + columns, inside, 0.0)
    after_previous(EARLY)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + at, inside, 0.0)
    x = row_or_sum(
        x_ptr, places_ptr, topk_weights_ptr, ids_ptr, token, columns, inside, hidden, num_experts,
        TOP_K, PLACED,
    )  # fmt: skip
    if HAS_RESIDUAL:
        x = stream_with(x, residual)
    if HAS_RESIDUAL or TOP_K > 0:
        tl.store(summed_ptr + at, x, inside)
    normed = norm_of(x.to(tl.float32), weight, inside, hidden, eps, CENTRED)
    normed = normed.to(x_ptr.dtype.element_ty)
    if NORMED:
        tl.store(normed_ptr + at, normed, inside)
    if QUANTIZED:
        scale = scale_of(normed, 0)
        # Else Triton would take 16 elements a thread of x, too, half of what is side by side.
        values_at = tl.max_contiguous(values_ptr + at, 8)
        tl.store(values_at, to_fp8(normed, scale), inside)
        tl.store(scales_ptr + token, scale)


@dataclass(frozen=True, slots=True)
class NormBefore:
    """A norm that the kernel of a product makes of its input first."""

    residual: Tensor | None
    weight: Tensor
    eps: float
    centred: bool


@dataclass(frozen=True, slots=True)
class Normed:
    """What a norm made, as far as it was wanted."""

    rows: Tensor | None  # [T, hidden]
    quantized: Fp8Tensor | None  # the same in 8 bits
    stream: Tensor  # [T, hidden]: the residual stream with x in it


def norm_rows(
    x: Tensor | ExpertOutputs,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    *,
    centred: bool,
    rows: bool = True,
    quantized: bool = False,
) -> Normed:
    """`layer_norm` (`centred`) or `rms_norm`: as rows, quantised, or both."""
    made, places, topk_weights, topk_ids, num_experts, top_k = operands_of(x)
    num_tokens, hidden = x.shape
    shape, dtype, device = (num_tokens, hidden), made.dtype, made.device
    is_new = residual is not None or top_k > 0
    summed = torch.empty(shape, dtype=dtype, device=device) if is_new else made
    normed = torch.empty(shape, dtype=dtype, device=device) if rows else None
    tokens = Fp8Tensor.empty(shape, device) if quantized else None
    block = triton.next_power_of_2(hidden)
    _norm_kernel[(num_tokens,)](
        made, places, topk_weights, topk_ids,
        made if residual is None else residual.contiguous(), weight, summed,
        made if normed is None else normed,
        made if tokens is None else tokens.values, made if tokens is None else tokens.scales,
        hidden, num_experts, eps, TOP_K=top_k, PLACED=places is not made,
        HAS_RESIDUAL=residual is not None, CENTRED=centred, NORMED=rows, QUANTIZED=quantized,
        BLOCK=block, num_warps=warps_of_row(block), **early_launch(made),
    )  # fmt: skip
    return Normed(normed, tokens, summed)


def _norm(
    x: Tensor | ExpertOutputs, residual: Tensor | None, weight: Tensor, eps: float, *, centred: bool
) -> tuple[Tensor, Tensor]:
    made = norm_rows(x, residual, weight, eps, centred=centred)
    assert made.rows is not None  # wanted
    return made.rows, made.stream


@rms_norm.register("cuda")
@rms_norm.register_invariant("cuda")
def rms_norm_cuda(
    x: Tensor | ExpertOutputs, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _norm(x, residual, weight, eps, centred=False)


@layer_norm.register("cuda")
@layer_norm.register_invariant("cuda")
def layer_norm_cuda(
    x: Tensor | ExpertOutputs, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _norm(x, residual, weight, eps, centred=True)
