"""Weights of experts, brought into the second cache while kernels run that read little memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.prefetch import prefetch_experts
from dropless.ops.triton.fp8 import parts
from dropless.ops.triton.launch import after_previous, early_launch

_MOST_TOKENS = 256  # beyond it arithmetic is the limit
_BYTES = 24 << 20  # of a cache of 50 MB or more, most of which others use meanwhile
_PIECE = 4096  # bytes that one thread asks for

_ASK = tl.constexpr(
    """
    {
        .reg .pred wanted;
        setp.ne.s32 wanted, $2, 0;
        @wanted cp.async.bulk.prefetch.L2.global [$1], 4096;
        mov.s32 $0, 0;
    }
    """
)


@triton.jit
def _prefetch_kernel(weight_ptr, half_bytes, wanted_bytes, THREADS: tl.constexpr,
                     PIECE: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """The beginning of one half, gate or up, of one expert's weights."""
    after_previous(EARLY)
    start = weight_ptr.to(tl.pointer_type(tl.uint8)) + tl.program_id(0).to(tl.int64) * half_bytes
    for first in range(0, wanted_bytes, THREADS * PIECE):
        places = first + tl.arange(0, THREADS) * PIECE
        is_wanted = (places < wanted_bytes).to(tl.int32)
        tl.inline_asm_elementwise(
            _ASK, "=r,l,r", [start + places, is_wanted], dtype=tl.int32, is_pure=False, pack=1
        )


@prefetch_experts.register("cuda")
def prefetch_experts_cuda(x: Tensor, gate_up: Tensor | Fp8Tensor, top_k: int) -> None:
    """The first tiles of `fused_experts` are those of the first outputs of every expert."""
    num_experts, rows, hidden = gate_up.shape
    # With fewer pairs many an expert has none.
    if not 2 * num_experts <= len(x) * top_k <= _MOST_TOKENS * top_k:
        return
    weight, _ = parts(gate_up)
    half_bytes = rows // 2 * hidden * weight.element_size()
    wanted = min(half_bytes, _BYTES // (2 * num_experts)) // _PIECE * _PIECE
    _prefetch_kernel[(2 * num_experts,)](
        weight, half_bytes, wanted, THREADS=32, PIECE=_PIECE, num_warps=1, **early_launch(x)
    )
