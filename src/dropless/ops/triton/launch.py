"""How kernels follow one another: on Hopper the next may be set up while one still runs."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def after_previous(EARLY: tl.constexpr):
    """First statement of every kernel that may read what the kernel before it wrote, or write what
    that one reads. Lets the next kernel be set up now, and waits for the previous one's results
    (CUDA's programmatic dependent launch)."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


def early_launch(x: Tensor) -> dict[str, Any]:
    """Arguments of the launch of a kernel that begins with `after_previous`."""
    early = x.is_cuda and _can_launch_early(x.device)
    return {"EARLY": early, "launch_pdl": early}


def warps_of_row(block: int) -> int:
    """Of a program that holds a row of `block` elements at once: 16 elements a thread."""
    return max(1, min(16, block // 512))


@cache
def _can_launch_early(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
