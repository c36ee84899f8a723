"""How many tokens a step may have while memory is short."""

from __future__ import annotations

_LEAST_SHARE = 256  # of the largest step: below it the step's tokens are not what takes memory
_STEPS_UNTIL_LARGER = 256  # good ones in a row


class StepSize:
    """`tokens` is half of what a step had that lacked memory, but not next to nothing; doubled, up
    to what it was, whenever many have had enough."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._largest = tokens
        self._least = max(1, tokens // _LEAST_SHARE)
        self._good_steps = 0  # since it changed, in a row

    def failed(self, num_tokens: int) -> None:
        """A step of so many lacked memory."""
        self.tokens = max(self._least, num_tokens // 2)
        self._good_steps = 0

    def succeeded(self) -> bool:
        """A step had enough. Whether `tokens` has changed."""
        if self.tokens == self._largest:
            return False
        self._good_steps += 1
        if self._good_steps < _STEPS_UNTIL_LARGER:
            return False
        self._good_steps = 0
        self.tokens = min(self._largest, 2 * self.tokens)
        return True
