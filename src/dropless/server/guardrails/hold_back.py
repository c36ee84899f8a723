"""Text of an answer that has come and is not judged yet."""

from __future__ import annotations

from collections.abc import Sequence

from dropless.encoder.messages import Entity
from dropless.server.guardrails.sentences import last_cut, last_space

# A sentence longer than this is not waited for. 48 characters stay behind then: whatever begins
# there (a number with spaces, an address) is judged again when it is complete.
MOST_CHARACTERS = 400
STAYS_BEHIND = 48


class HoldBack:
    """Collects text until some of it can be judged: whole sentences or lines, or all of it at the
    end. `first` is how many characters must have come before the first of them is judged."""

    def __init__(self, first: int = 0) -> None:
        self.held = ""
        self._first = first

    def push(self, text: str) -> None:
        self.held += text

    def ready(self, *, ended: bool) -> tuple[str, int]:
        """What to judge now, and how much of it may then be shown; ("", 0) if it is too early."""
        if ended:
            return self.held, len(self.held)
        if len(self.held) < self._first:
            return "", 0
        cut = last_cut(self.held)
        if cut:
            return self.held[:cut], cut
        if len(self.held) > MOST_CHARACTERS:
            most = len(self.held) - STAYS_BEHIND
            return self.held, last_space(self.held[:most]) or most
        return "", 0

    def take(self, cut: int, entities: Sequence[Entity]) -> tuple[str, int]:
        """Let go what was judged up to `cut`. Returns it as it was, and how many of the entities,
        which are of the text judged, lie in it: one that reaches over the cut stays behind whole,
        unless nothing else is there to show."""
        inside = 0
        for entity in entities:
            if entity.start >= cut:
                break
            if entity.end > cut:
                if entity.start > 0:
                    cut = entity.start
                    break
                cut = entity.end
            inside += 1
        taken, self.held = self.held[:cut], self.held[cut:]
        self._first = 0
        return taken, inside
