"""When a long prompt may be computed beside requests that generate.

A chunk of a long prompt makes the step of all who generate longer. How much longer depends on the
model, the device, how many generate and how far the prompt has come, so it is measured and not
foreseen: after each step with such a chunk, as many steps go without one as it takes until the
delay is no more than the allowed share of their time. The mean time between the tokens of others
keeps within that share, on any device, and a chunk may be as large as the device computes well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_MOST_HELD_STEPS = 256  # whatever was measured: nothing stands still without end
_MEMORY = 8  # steps over which the typical time of a step is averaged
_OUTLIER = 2.0  # a step counts as this many typical ones at most


@dataclass(frozen=True, slots=True)
class LongPrompts:
    """A prompt of which more than `tokens` are to be computed is long; such prompts may slow down
    those who generate by the share `slowdown`."""

    tokens: int = 4096
    slowdown: float = 0.15


DEFAULT = LongPrompts()


class Pace:
    """Holds long prompts back beside requests that generate.

    Hears of every step in which a request generates: when it is scheduled, then how long it took,
    in the same order. One more step may be scheduled meanwhile.
    """

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self._typical_s = 0.0  # of a step without a long prompt; 0: none was measured
        self._delay_s = 0.0  # by the long prompt in flight, as far as it is known
        self._in_flight = False
        self._held_steps = 0

    @property
    def holds(self) -> bool:
        """Whether long prompts stand still in the next step: one is being measured, or others have
        not yet had their share of the time."""
        return self._in_flight or self._held_steps > 0

    def scheduled(self, *, has_long_prompt: bool) -> None:
        if has_long_prompt:
            self._in_flight = True
        elif self._held_steps:
            self._held_steps -= 1

    def took(self, seconds: float, *, has_long_prompt: bool) -> None:
        """A step has ended `seconds` after the one before, or after its own launch."""
        if self._in_flight or has_long_prompt:
            # The step before counts as well: launching a long one may have held up the host in it.
            self._delay_s += seconds - self._typical_s
        elif self._typical_s:
            seconds = min(seconds, _OUTLIER * self._typical_s)
            self._typical_s += (seconds - self._typical_s) / _MEMORY
        else:
            self._typical_s = seconds
        if has_long_prompt:
            self._held_steps = self._steps_for(self._delay_s)
            self._in_flight, self._delay_s = False, 0.0

    def reset(self) -> None:
        """What is in flight is lost."""
        self._in_flight, self._delay_s = False, 0.0

    def _steps_for(self, delay_s: float) -> int:
        """How many steps it takes until a delay is no more than the share of their time."""
        if not self._typical_s:
            return 1  # and it will be known
        wanted = delay_s / (self._slowdown * self._typical_s)
        return max(0, math.ceil(min(wanted, _MOST_HELD_STEPS)))
