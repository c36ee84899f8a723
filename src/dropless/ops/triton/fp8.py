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


# Of a few tokens a product without matrix units would be held by its instructions, not by memory:
# so eight weights are multiplied as four pairs of float16. In that, products of 8-bit numbers are
# exact, and sums of four lose less than matrix units do, which keep 14 bits in all. One factor is
# divided by 64, or they could leave float16's range.


@triton.jit
def eight_halves(word):
    """Eight e4m3 in an int64, divided by 64: pairs of float16 in four int32."""
    return tl.inline_asm_elementwise(
        """{ .reg .b32 low, high, by; .reg .b16 a, b, c, d;
        mov.b64 {low, high}, $4; mov.b32 {a, b}, low; mov.b32 {c, d}, high;
        mov.b32 by, 0x24002400;
        cvt.rn.f16x2.e4m3x2 $0, a; mul.rn.f16x2 $0, $0, by;
        cvt.rn.f16x2.e4m3x2 $1, b; mul.rn.f16x2 $1, $1, by;
        cvt.rn.f16x2.e4m3x2 $2, c; mul.rn.f16x2 $2, $2, by;
        cvt.rn.f16x2.e4m3x2 $3, d; mul.rn.f16x2 $3, $3, by; }""",
        "=&r,=&r,=&r,=&r,l", [word],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _two_halves(first, second):
    """The same of two float32, which are rounded to e4m3 first."""
    return tl.inline_asm_elementwise(
        """{ .reg .b32 by; .reg .b16 pair;
        mov.b32 by, 0x24002400; cvt.rn.satfinite.e4m3x2.f32 pair, $2, $1;
        cvt.rn.f16x2.e4m3x2 $0, pair; mul.rn.f16x2 $0, $0, by; }""",
        "=&r,f,f", [first, second], dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def halves_of(row, scale, SIZE: tl.constexpr):
    """`eight_halves` of the words of a row [SIZE], quantised: four int32 [SIZE / 8]."""
    row = row.to(tl.float32) * tl.div_rn(1.0, scale)
    even, odd = tl.split(tl.reshape(row, [SIZE // 8, 4, 2]))
    even_04, even_26 = tl.split(tl.reshape(even, [SIZE // 8, 2, 2]))
    odd_15, odd_37 = tl.split(tl.reshape(odd, [SIZE // 8, 2, 2]))
    a, e = tl.split(even_04)
    c, g = tl.split(even_26)
    b, f = tl.split(odd_15)
    d, h = tl.split(odd_37)
    return _two_halves(a, b), _two_halves(c, d), _two_halves(e, f), _two_halves(g, h)


@triton.jit
def times_eight(word, first, second, third, fourth):
    """The sum of products, float32 and divided by 64, of eight e4m3 in an int64 with what
    `eight_halves` made of others."""
    return tl.inline_asm_elementwise(
        """{ .reg .b32 low, high, factors, sums; .reg .b16 a, b, c, d; .reg .f16 e, f;
        .reg .f32 g, h;
        mov.b64 {low, high}, $1; mov.b32 {a, b}, low; mov.b32 {c, d}, high;
        cvt.rn.f16x2.e4m3x2 factors, a; mul.rn.f16x2 sums, factors, $2;
        cvt.rn.f16x2.e4m3x2 factors, b; fma.rn.f16x2 sums, factors, $3, sums;
        cvt.rn.f16x2.e4m3x2 factors, c; fma.rn.f16x2 sums, factors, $4, sums;
        cvt.rn.f16x2.e4m3x2 factors, d; fma.rn.f16x2 sums, factors, $5, sums;
        mov.b32 {e, f}, sums; cvt.f32.f16 g, e; cvt.f32.f16 h, f; add.f32 $0, g, h; }""",
        "=f,l,r,r,r,r", [word, first, second, third, fourth],
        dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


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


def has_whole_words(weight: Tensor | Fp8Tensor) -> bool:
    """Whether each output's weights, if they have 8 bits, are words of eight."""
    return isinstance(weight, Tensor) or weight.shape[-1] % 8 == 0
