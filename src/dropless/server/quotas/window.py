"""How much was taken in the last so many seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_NS = 1_000_000_000
# Amounts so close together count as one, taken at the later time: a window never has more than so
# many entries, is never too lenient, and too strict by no more than a 600th of its span.
_GRAINS = 600


@dataclass(slots=True)
class Entry:
    first_at: int
    at: int  # nanoseconds; when it counts as taken
    amount: int


class Window:
    """A sliding window. Times are nanoseconds of a clock that never goes back."""

    def __init__(self, span_s: int) -> None:
        self._span = span_s * _NS
        self._grain = self._span // _GRAINS
        self._entries: deque[Entry] = deque()
        self._total = 0

    def total(self, now: int) -> int:
        """What was taken after `now` less the span."""
        while self._entries and self._entries[0].at + self._span <= now:
            self._total -= self._entries.popleft().amount
        return self._total

    def wait(self, now: int, amount: int, limit: int) -> int:
        """Nanoseconds until there is room for `amount`, which is at most `limit`, if nobody else
        takes any; 0: there is room now."""
        excess = self.total(now) + amount - limit
        if excess <= 0:
            return 0
        for entry in self._entries:
            excess -= entry.amount
            if excess <= 0:
                return entry.at + self._span - now
        raise AssertionError(f"{amount} is more than {limit}")

    def take(self, now: int, amount: int) -> Entry:
        self._total += amount
        if self._entries and now - self._entries[-1].first_at <= self._grain:
            last = self._entries[-1]
            last.at = now
            last.amount += amount
            return last
        entry = Entry(now, now, amount)
        self._entries.append(entry)
        return entry

    def give_back(self, now: int, entry: Entry, amount: int) -> None:
        """Of what `take` returned; a negative amount takes more."""
        self.total(now)  # forget what has left the window
        if self._entries and entry.at >= self._entries[0].at:
            self._total -= amount
        entry.amount -= amount

    def empty_in(self, now: int) -> int:
        """Nanoseconds until nothing counts any more, if nobody takes any."""
        self.total(now)
        return self._entries[-1].at + self._span - now if self._entries else 0
