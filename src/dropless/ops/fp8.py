"""Numbers of 8 bits (e4m3) with one float32 scale per row: weights by output channel, kept so, and
activations by token, made when they are needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dropless.ops.registry import Op

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest e4m3 value
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # of a row of zeros: nothing is divided by 0
_PIECE_ELEMENTS = 1 << 25  # quantised at a time: float32 copies of 128 MiB


@dataclass(frozen=True, slots=True)
class Fp8Tensor:
    """Matrices that stand for `values * scales[..., None]`."""

    values: Tensor  # [..., out, in] float8_e4m3fn, contiguous
    scales: Tensor  # [..., out] float32

    @classmethod
    def empty(cls, shape: tuple[int, ...], device: torch.device) -> Fp8Tensor:
        """Room for matrices of this shape, [..., out, in], whose content is not defined."""
        return cls(
            torch.empty(shape, dtype=FP8, device=device),
            torch.empty(shape[:-1], dtype=torch.float32, device=device),
        )

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Scales included."""
        return self.values.nbytes + self.scales.nbytes

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __getitem__(self, index: int | slice) -> Fp8Tensor:
        """As of a tensor: one of several matrices, or some rows of a matrix, as a view."""
        return Fp8Tensor(self.values[index], self.scales[index])

    def float(self) -> Tensor:
        """What it stands for: [..., out, in] float32."""
        return self.values.float() * self.scales[..., None]


def quantize_channels(weight: Tensor) -> Fp8Tensor:
    """Each output channel (row) of `weight` [..., out, in], of any strides, by the rule of
    `quantize_tokens`."""
    quantized = Fp8Tensor.empty(tuple(weight.shape), weight.device)
    quantize_into(quantized, weight)
    return quantized


def quantize_into(quantized: Fp8Tensor, weight: Tensor) -> None:
    """`quantize_channels` into place, which may be a part of a larger one. Takes up to 300 MiB
    meanwhile, however large the weight is."""
    rows = max(1, _PIECE_ELEMENTS * weight.shape[-2] // max(1, weight.numel()))
    for piece, values, scales in zip(
        torch.split(weight, rows, -2),
        torch.split(quantized.values, rows, -2),
        torch.split(quantized.scales, rows, -1),
        strict=True,
    ):
        made, made_scales = _quantize_rows(piece)
        values.copy_(made)
        scales.copy_(made_scales)


@Op
def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """`(values [T, n] float8_e4m3fn, scales [T] float32)` of activations x [T, n].

    A token's scale is its largest absolute value / 448, or the smallest normal float32 if that is
    larger, so that zeros stay zeros; its values are x * (1 / scale), rounded to the nearest e4m3
    number, ties to even, never beyond ±448. All in float32. Of a token that holds NaN or an
    infinity every product is NaN.
    """
    return _quantize_rows(x)


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    largest = x.abs().amax(-1).float()  # NaN if there is one
    scales = (largest / FP8_MAX).clamp(min=_SMALLEST_SCALE)
    scaled = x * scales.reciprocal()[..., None]  # float32, whatever x is
    return scaled.clamp_(-FP8_MAX, FP8_MAX).to(FP8), scales
