"""Linear layers with float16 weights and float32 activations, for CPUs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dropless.errors import CheckpointError
from dropless.ops.registry import Op

_FBGEMM_ROWS, _FBGEMM_COLUMNS = 512, 16  # a packed weight's input and output size is a multiple


@dataclass(frozen=True, slots=True)
class PackedHalf:
    """A weight [out, in] of a linear layer in float16, made by `pack_half`.

    Exactly one of the two forms is there: FBGEMM's blocks on an x86 CPU, a plain tensor elsewhere.
    """

    shape: tuple[int, int]
    nbytes: int  # padding of the packed form included
    blocks: torch.ScriptObject | None
    plain: Tensor | None

    def unpack(self) -> Tensor:
        """The weight [out, in] as a float32 copy."""
        if self.plain is not None:
            return self.plain.float()
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self.blocks)[0]
        return weight.float()


def pack_half(weight: Tensor) -> PackedHalf:
    """`weight` [out, in] of any float dtype, rounded to float16 and packed for its device.

    On the meta device only the shape and the size that a CPU would take are kept. Raises
    CheckpointError when a value is not finite or does not fit into float16.
    """
    rows, columns = weight.shape
    if not weight.is_meta:
        _check_range(weight)
    if weight.device.type not in ("cpu", "meta") or not _has_fbgemm():
        plain = weight.half()
        return PackedHalf((rows, columns), plain.nbytes, blocks=None, plain=plain)
    nbytes = 2 * _round_up(rows, _FBGEMM_COLUMNS) * _round_up(columns, _FBGEMM_ROWS)
    if weight.is_meta:
        return PackedHalf((rows, columns), nbytes, blocks=None, plain=weight.half())
    blocks = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), None)
    return PackedHalf((rows, columns), nbytes, blocks=blocks, plain=None)


@Op
def half_linear(x: Tensor, weight: PackedHalf) -> Tensor:
    """x [T, in] times weight [out, in], transposed: [T, out]; x and the result are float32."""
    return F.linear(x, weight.unpack())


@half_linear.register("cpu")
def half_linear_fbgemm(x: Tensor, weight: PackedHalf) -> Tensor:
    """FBGEMM's kernel, which widens each weight in registers: half the bytes of float32 move."""
    if weight.blocks is None:
        return half_linear.reference(x, weight)
    out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, weight.blocks)
    return out


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _check_range(weight: Tensor) -> None:
    limit = torch.finfo(torch.float16).max
    low, high = (value.item() for value in torch.aminmax(weight))
    if not (-limit <= low and high <= limit):  # NaN compares false
        raise CheckpointError(
            f"a weight of shape {list(weight.shape)} holds values from {low} to {high}; float16 "
            f"holds up to ±{limit:.0f} only: set quantization to 'none'"
        )
