"""Activations of 8 bits: each token with its own scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.fp8 import FP8, Fp8Tensor, quantize_tokens
from dropless.ops.triton.launch import after_previous, early_launch, warps_of_row


@triton.jit
def scale_of(row, AXIS: tl.constexpr):
    """The scale of a row, see `dropless.ops.fp8.quantize_tokens`. As whole numbers, a NaN is larger
    than all others, and so is not lost."""
    bits = row.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    largest = tl.max(bits, AXIS).to(tl.float32, bitcast=True)
    smallest = 1.1754943508222875e-38
    return tl.maximum(tl.div_rn(largest, 448.0), smallest, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def to_fp8(x, scale):
    """x / scale in e4m3; a NaN stays one, and makes every product of its token one."""
    return (x.to(tl.float32) * tl.div_rn(1.0, scale)).to(tl.float8e4nv)


@triton.jit
def _quantize_kernel(x_ptr, values_ptr, scales_ptr, size, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    after_previous(EARLY)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    x = tl.load(x_ptr + token * size + columns, inside, 0.0)
    scale = scale_of(x, 0)
    tl.store(values_ptr + token * size + columns, to_fp8(x, scale), inside)
    tl.store(scales_ptr + token, scale)


@quantize_tokens.register("cuda")
def quantize_tokens_cuda(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    num_tokens, size = x.shape
    values = torch.empty(x.shape, dtype=FP8, device=x.device)
    scales = torch.empty(num_tokens, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(size)
    _quantize_kernel[(num_tokens,)](
        x, values, scales, size, BLOCK=block, num_warps=warps_of_row(block),
        **early_launch(x),
    )  # fmt: skip
    return values, scales


@dataclass(frozen=True, slots=True)
class Tokens:
    """Rows as a product takes them: in the precision of its weight."""

    values: Tensor  # [T, n]
    scales: Tensor  # [T] float32 of 8-bit values; of others a tensor that is not read
    dtype: torch.dtype  # of what is made of them

    @classmethod
    def of(cls, x: Tensor | Tokens, weight: Tensor | Fp8Tensor) -> Tokens:
        """x, quantised if the weight is and x is not yet."""
        if isinstance(x, Tokens):
            return x
        if isinstance(weight, Tensor):
            return cls(x, x, x.dtype)
        return cls(*quantize_tokens(x), x.dtype)

    @classmethod
    def known(cls, quantized: Fp8Tensor, dtype: torch.dtype) -> Tokens:
        """What was quantised from rows of `dtype` before."""
        return cls(quantized.values, quantized.scales, dtype)

    def __len__(self) -> int:
        return len(self.values)

    def new(self, *shape: int) -> Tensor:
        """Room for results."""
        return torch.empty(shape, dtype=self.dtype, device=self.values.device)


def parts(weight: Tensor | Fp8Tensor) -> tuple[Tensor, Tensor]:
    """Values and scales of a weight; without scales a tensor that is not read."""
    if isinstance(weight, Tensor):
        return weight, weight
    return weight.values, weight.scales


def is_aligned(weight: Tensor | Fp8Tensor) -> bool:
    """Whether matrix units take it without copies: rows of whole 16 bytes on both sides."""
    return all(size % 16 == 0 for size in weight.shape[-2:])
