"""How much was taken in the last so many seconds."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
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
    """A sliding window over what was taken here, and over what other servers tell that they have
    taken. Times are nanoseconds of a clock that never goes back."""

    def __init__(self, span_s: int) -> None:
        self._span = span_s * _NS
        self._grain = self._span // _GRAINS
        self._entries: deque[Entry] = deque()
        self._elsewhere: dict[Hashable, int] = {}  # amount by source
        self._ends: list[tuple[int, Hashable]] = []  # a heap: when each source leaves the window
        self._last_end = 0  # of all that were ever heard of
        self._total = 0

    def total(self, now: int) -> int:
        """What was taken after `now` less the span."""
        while self._entries and self._entries[0].at + self._span <= now:
            self._total -= self._entries.popleft().amount
        while self._ends and self._ends[0][0] <= now:
            _, source = heapq.heappop(self._ends)
            self._total -= self._elsewhere.pop(source)
        return self._total

    def wait(self, now: int, amount: int, limit: int) -> int:
        """Nanoseconds until there is room for `amount`, which is at most `limit`, if nobody else
        takes any; 0: there is room now."""
        excess = self.total(now) + amount - limit
        if excess <= 0:
            return 0
        own = [(entry.at + self._span, entry.amount) for entry in self._entries]
        elsewhere = [(end, self._elsewhere[source]) for end, source in self._ends]
        for end, left in sorted(own + elsewhere):
            excess -= left
            if excess <= 0:
                return end - now
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

    def hear(self, now: int, source: Hashable, end: int, amount: int) -> None:
        """Something that another server took counts until `end`. `amount` is all of it: a source
        that was heard of before has changed its amount, and keeps its end."""
        self.total(now)  # forget what has left the window
        if source not in self._elsewhere:
            if end <= now:
                return
            heapq.heappush(self._ends, (end, source))
            self._last_end = max(self._last_end, end)
        self._total += amount - self._elsewhere.get(source, 0)
        self._elsewhere[source] = amount

    def empty_in(self, now: int) -> int:
        """Nanoseconds until nothing counts any more, if nobody takes any."""
        self.total(now)
        own = self._entries[-1].at + self._span - now if self._entries else 0
        return max(own, self._last_end - now) if self._ends else own
