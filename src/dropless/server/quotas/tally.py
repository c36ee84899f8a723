"""What this server has let in, in the form in which other servers need to know it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from dropless.server.quotas.rate_limit import Meter

_NS = 1_000_000_000
INTERVAL_S = 0.5  # between two exchanges with the others
_INTERVAL = round(INTERVAL_S * _NS)
_SLOTS = 120  # of a window


class WindowKey(NamedTuple):
    """Whose window it is: `key` as in RateLimit, and which one. It does not say the limit, so that
    a new configuration does not forget what was taken."""

    endpoint: str
    key: str
    name: str
    meter: Meter


@dataclass(slots=True, eq=False)
class Slot:
    """What was taken of a window within a short time. Others count all of it until `end`, an
    interval longer than it counts here: they hear of it so much later."""

    number: int
    key: WindowKey
    until: int  # nanoseconds; from then on what is taken goes into another slot
    end: int  # nanoseconds
    amount: int = 0


class Tally:
    """Slots, and which of them have changed since somebody asked. Only slots that may still change
    are kept. Times are nanoseconds of the clock that the windows have."""

    def __init__(self) -> None:
        self._number = 0
        self._current: dict[WindowKey, Slot] = {}
        self._changed: dict[int, Slot] = {}  # by number

    def take(self, now: int, key: WindowKey, amount: int) -> Slot:
        slot = self._current.get(key)
        if slot is None or now >= slot.until:
            span = key.meter.span_s * _NS
            until = now + max(span // _SLOTS, _INTERVAL)
            self._number += 1
            slot = self._current[key] = Slot(self._number, key, until, until + span + _INTERVAL)
        slot.amount += amount
        self._changed[slot.number] = slot
        return slot

    def give_back(self, now: int, slot: Slot, amount: int) -> None:
        """A negative amount takes more."""
        slot.amount -= amount
        if now < slot.end:
            self._changed[slot.number] = slot

    def changes(self, now: int) -> list[Slot]:
        """Slots that have changed since the last call and still count, as they are now."""
        for key in [key for key, slot in self._current.items() if now >= slot.until]:
            del self._current[key]
        changed, self._changed = self._changed, {}
        return [slot for slot in changed.values() if now < slot.end]

    def tell_again(self, slots: Iterable[Slot]) -> None:
        """Nobody could be told these: they are among the next changes."""
        for slot in slots:
            self._changed[slot.number] = slot
