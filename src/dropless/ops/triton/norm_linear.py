"""A norm that quantises for the linear layer behind it, or of one token is made by that."""

from __future__ import annotations

import torch
from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.moe import ExpertOutputs
from dropless.ops.norm_linear import norm_linear, norm_then_linear
from dropless.ops.triton.fp8 import Tokens
from dropless.ops.triton.linear import linear_by_vector, linear_of, takes_norm
from dropless.ops.triton.norm import NormBefore, norm_rows


@norm_linear.register("cuda")
def norm_linear_cuda(
    x: Tensor | ExpertOutputs,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor | Fp8Tensor,
    bias: Tensor | None,
    *,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    is_one = x.shape[0] == 1
    in_order = isinstance(x, Tensor) or x.places is None
    if is_one and in_order and norm_weight.dtype != torch.float32 and takes_norm(weight):
        norm = NormBefore(residual, norm_weight, eps, centred)
        whole = x.contiguous() if isinstance(x, Tensor) else x
        return linear_by_vector(whole, weight, bias, norm)
    if isinstance(weight, Tensor) or is_one:  # one token is quantised by its product
        return norm_then_linear(x, residual, norm_weight, eps, weight, bias, centred=centred)
    made = norm_rows(x, residual, norm_weight, eps, centred=centred, rows=False, quantized=True)
    assert made.quantized is not None  # wanted
    return linear_of(Tokens.known(made.quantized, made.stream.dtype), weight, bias), made.stream
