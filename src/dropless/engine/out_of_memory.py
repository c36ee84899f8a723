"""No memory left: how that is told from other errors, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dropless.engine.machine_memory import available_memory
from dropless.errors import MemoryPlanError

# PyTorch has a class for its own allocations on a GPU. CUDA, cuBLAS, NCCL, Triton and PyTorch on a
# CPU say it in words.
_WORDS = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory")


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether this error, or one that it was raised from, is for want of memory."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS):
            return True
        error = error.__cause__
    return False


def memory_left(device: torch.device) -> str:
    """Such as `GPU 1 has 0.31 of 79.10 GiB free; this process holds 70.20 GiB of it`."""
    if device.type == "cpu":
        return f"this machine has {_gib(available_memory())} GiB free"
    index = device.index or 0
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # not even enough to ask
        return f"GPU {index} has none left"
    held = torch.cuda.memory_reserved(device)
    return (
        f"GPU {index} has {_gib(free)} of {_gib(total)} GiB free; this process holds"
        f" {_gib(held)} GiB of it"
    )


@contextmanager
def naming_lack_of_memory(device: torch.device, needed_bytes: int) -> Iterator[None]:
    """What fails for want of memory in here, where a model is loaded, is a MemoryPlanError.
    `needed_bytes` is what was planned for `device`."""
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise MemoryPlanError(
            f"memory ran out while the model was loaded, though the plan of {_gib(needed_bytes)}"
            f" GiB fitted when it was made: {memory_left(device)}. Another program may have taken"
            " it since (nvidia-smi and top show which): end it, or lower memory_fraction,"
            " kv_cache_bytes or step_token_budget"
        ) from error


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f}"
