"""How long a layer takes when it is called again and again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

_CALLS, _ROUNDS = 10, 5


def microseconds(layer: Callable[[], object], device: str) -> float:
    """Of one call: the median over rounds of several calls in a row. Kernels are launched ahead of
    the GPU, so that it is the GPU's time as long as a call takes it longer than its launches."""
    layer()
    return statistics.median(_round(layer, device) for _ in range(_ROUNDS)) / _CALLS


def _round(layer: Callable[[], object], device: str) -> float:
    if device == "cpu":
        started = time.perf_counter()
        for _ in range(_CALLS):
            layer()
        return 1e6 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(_CALLS):
        layer()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * float(begin.elapsed_time(end))


def tune_tiles(layer: Callable[[], object], device: str) -> None:
    """As the engine does at its start: measure the best tiles of shapes that no table has. Takes up
    to a minute."""
    if device == "cpu":
        return
    from dropless.ops.triton.tiles import noting_strangers
    from dropless.ops.triton.tuning import tune

    with noting_strangers() as strangers:
        layer()
    if strangers:
        tune(list(strangers.values()), lambda _: None)
