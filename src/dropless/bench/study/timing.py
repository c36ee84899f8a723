"""How long a layer takes when it is called again and again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from dropless.checkpoints.model_cache import cache_root

_ROUNDS = 3
_HELD_CYCLES = 10_000_000  # some 5 ms
_TUNING_S = 30.0


def microseconds(
    calls: Sequence[Callable[[], object]], device: str, align: Callable[[], object] = lambda: None
) -> float:
    """The mean of these calls in a row; the median of some rounds. A GPU is held while they are
    launched, so that no launch counts. `align` lets ranks that sum up begin together."""
    for call in calls:
        call()
    return statistics.median(_round(calls, device, align) for _ in range(_ROUNDS)) / len(calls)


def _round(
    calls: Sequence[Callable[[], object]], device: str, align: Callable[[], object]
) -> float:
    if device == "cpu":
        align()
        started = time.perf_counter()
        for call in calls:
            call()
        return 1e6 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    torch.cuda._sleep(_HELD_CYCLES)  # type: ignore[no-untyped-call]
    align()
    begin.record()
    for call in calls:
        call()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * float(begin.elapsed_time(end))


def tune_tiles(layer: Callable[[], object], device: str) -> None:
    """As the engine does at its start: takes up what earlier starts measured, and measures the best
    tiles of shapes that no table has. `layer` computes a few tokens."""
    if device == "cpu":
        return
    from dropless.ops.triton.tuning import read_cache, tune_for

    read_cache(cache_root() / "tiles")
    tune_for(layer, lambda _: None, limit_s=_TUNING_S)
