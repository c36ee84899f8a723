"""The sliding window against a list of everything that was ever taken."""

from __future__ import annotations

import copy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dropless.server.quotas.window import Entry, Window

NS = 1_000_000_000


class WindowMachine(RuleBasedStateMachine):
    SPAN_S = 60
    LIMIT = 100

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(self.SPAN_S)
        self.now = 1_000 * NS
        self.taken: list[list[int]] = []  # [time, amount]
        self.entries: list[tuple[int, Entry, int]] = []  # index in taken, entry, still reserved
        self.elsewhere: dict[int, list[int]] = {}  # source: [end, amount]

    def truth(self, span: float) -> int:
        here = sum(amount for at, amount in self.taken if at + span > self.now)
        return here + sum(amount for end, amount in self.elsewhere.values() if end > self.now)

    @rule(ms=st.one_of(st.integers(0, 200), st.integers(0, 70_000)))
    def time_passes(self, ms: int) -> None:
        self.now += ms * 1_000_000

    @rule(amount=st.integers(0, LIMIT))
    def ask(self, amount: int) -> None:
        wait = self.window.wait(self.now, amount, self.LIMIT)
        span = self.SPAN_S * NS
        if wait == 0:
            self.take(amount)
            return
        # Not kept out for more than a 600th of the span longer than it must be.
        assert self.truth(span + span / 600) + amount > self.LIMIT
        assert wait <= span
        later = copy.deepcopy(self.window)
        assert later.wait(self.now + wait - 1, amount, self.LIMIT) == 1

    @rule(amount=st.integers(1, LIMIT))
    def ask_and_wait(self, amount: int) -> None:
        self.now += self.window.wait(self.now, amount, self.LIMIT)
        assert self.window.wait(self.now, amount, self.LIMIT) == 0
        self.take(amount)

    def take(self, amount: int) -> None:
        self.entries.append((len(self.taken), self.window.take(self.now, amount), amount))
        self.taken.append([self.now, amount])

    @rule(
        source=st.integers(0, 5),
        end_ms=st.integers(-1000, SPAN_S * 1000),
        amount=st.integers(0, LIMIT),
    )
    def hear(self, source: int, end_ms: int, amount: int) -> None:
        known = self.elsewhere.setdefault(source, [self.now + end_ms * 1_000_000, 0])
        self.window.hear(self.now, source, known[0], amount)
        known[1] = amount
        if known[0] <= self.now:
            del self.elsewhere[source]

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if not self.entries:
            return
        index = data.draw(st.integers(0, len(self.entries) - 1))
        taken, entry, reserved = self.entries.pop(index)
        amount = data.draw(st.integers(0, reserved))
        self.window.give_back(self.now, entry, amount)
        self.taken[taken][1] -= amount

    @invariant()
    def it_is_never_above_the_limit_nor_forgets_anything(self) -> None:
        span = self.SPAN_S * NS
        assert self.truth(span) <= self.window.total(self.now) <= self.truth(span * 601 / 600)
        if not self.elsewhere:
            assert self.window.total(self.now) <= self.LIMIT
        later = copy.deepcopy(self.window)
        assert later.total(self.now + later.empty_in(self.now)) == 0


TestWindow = WindowMachine.TestCase
TestWindow.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)


def test_it_stays_small() -> None:
    window = Window(3600)
    for number in range(40_000):
        window.take(number * NS // 10, 1)
    assert window.total(40_000 * NS // 10) >= 10_000
    assert len(window._entries) <= 602
