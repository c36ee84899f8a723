"""Random numbers that depend on a request's seed and the place in its output, on nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: Sequence[int], places: Sequence[int]) -> NDArray[np.float64]:
    """One number in (0, 1) for each pair of a seed (any 64-bit integer) and a place (0, 1, ...).

    SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA
    2014) addressed by counter: the mixed seed is the stream's start, the place the number of steps
    from there. Neighbouring seeds therefore give unrelated streams.
    """
    start = _mix(np.array([seed % 2**64 for seed in seeds], dtype=np.uint64))
    steps = np.asarray(places, dtype=np.uint64) + np.uint64(1)
    bits = _mix(start + steps * _GAMMA) >> np.uint64(12)
    return (bits.astype(np.float64) + 0.5) * 2.0**-52


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser; arithmetic is modulo 2^64."""
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))
