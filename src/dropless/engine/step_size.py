"""How many tokens a step may have while memory is short."""

from __future__ import annotations

_MOST_FAILURES = 8  # in a row; after each a step may have half as many tokens
_STEPS_UNTIL_LARGER = 1000  # good ones in a row


class StepSize:
    """`tokens` is half of what a step had that lacked memory; doubled, up to what it was, when many
    have had enough."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._largest = tokens
        self._failures = 0  # in a row
        self._good_steps = 0  # since it changed

    def failed(self, num_tokens: int) -> bool:
        """A step of so many lacked memory. Whether a smaller one is worth a try."""
        self._failures += 1
        self._good_steps = 0
        if self._failures > _MOST_FAILURES or num_tokens == 1:
            return False
        self.tokens = num_tokens // 2
        return True

    def succeeded(self) -> bool:
        """A step had enough. Whether `tokens` has changed."""
        self._failures = 0
        if self.tokens == self._largest:
            return False
        self._good_steps += 1
        if self._good_steps < _STEPS_UNTIL_LARGER:
            return False
        self._good_steps = 0
        self.tokens = min(self._largest, 2 * self.tokens)
        return True
