"""Linear layers, with weights of 8 bits or as they are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor, quantize_tokens
from dropless.ops.registry import Op


@Op
def linear(x: Tensor, weight: Tensor | Fp8Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, in] times weight [out, in], transposed, plus bias [out]: [T, out] in x's dtype.

    With an `Fp8Tensor` the tokens are quantised as well (`quantize_tokens`): the products of the
    quantised values are summed in float32, then multiplied by both scales, then the bias is added,
    and the result is rounded to x's dtype.
    """
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    values, scales = quantize_tokens.reference(x)
    sums = F.linear(values.float(), weight.values.float())
    out = sums * weight.scales * scales[:, None]
    return (out if bias is None else out + bias).to(x.dtype)
