"""How kernels follow one another: on Hopper the next may be set up while one still runs."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_COUNTERS = 1 << 16


@triton.jit
def after_previous(EARLY: tl.constexpr):
    """First statement of every kernel that may read what the kernel before it wrote, or write what
    that one reads. Lets the next kernel be set up now, and waits for the previous one's results
    (CUDA's programmatic dependent launch)."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def arrives_last(counter_ptr, count):
    """Whether this program is the last of `count` that share a counter: then it sees all that the
    others have stored before, if it reads past the first cache (".cg"), and the counter is zero
    again."""
    tl.debug_barrier()  # all threads have stored before one says so
    is_last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == count - 1
    if is_last:
        tl.store(counter_ptr, 0)
    return is_last


def early_launch(x: Tensor) -> dict[str, Any]:
    """Arguments of the launch of a kernel that begins with `after_previous`."""
    early = x.is_cuda and _can_launch_early(x.device)
    return {"EARLY": early, "launch_pdl": early}


def warps_of_row(block: int) -> int:
    """Of a program that holds a row of `block` elements at once: 16 elements a thread."""
    return max(1, min(16, block // 512))


def counters(device: torch.device, count: int) -> Tensor:
    """At least `count` counters for `arrives_last`, int32. All kernels have the same, for one runs
    at a time."""
    found = _counters(device)
    assert count <= len(found), f"{count} counters"
    return found


@cache
def _counters(device: torch.device) -> Tensor:
    return torch.zeros(_COUNTERS, dtype=torch.int32, device=device)


@cache
def _can_launch_early(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
