"""Whose turn it is among the owners of requests: a fair queue, and who gives way to whom.

Of each owner the tokens that were computed for it are counted, divided by its weight. Among
requests of the same priority the owner who was served least goes first; among an owner's own, who
came first. A prompt token found in the prefix cache, or computed again after a preemption, costs
nothing.

Who was served least is measured on a clock, the virtual time of a priority. Every token moves it by
one over the weights of all; it is never behind the least served of those who wait, and when nobody
waits it is where the most served is. Who had nothing waiting begins at that time: what was not used
is not saved. Who was away altogether owes nothing either.

An owner is within its share while its live requests are no more than its part of the rows, by
weight. Who is within has a head start of one step's tokens before those who are not, and does not
wait for one of their requests to end: the youngest of the owner that holds most gives way.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeAlias

from dropless.engine.request import NO_ROW, Request

_ORDER = attrgetter("order")
_AT_ONCE = -math.inf

Size: TypeAlias = Callable[[Request], int]  # what a running request holds of what is short
Turn: TypeAlias = tuple[int, float]  # -priority, virtual time: the smaller, the sooner
_Entry: TypeAlias = "tuple[Turn, int, Share]"  # the number is the arrival of its first request


@dataclass(slots=True, eq=False)
class _Level:
    """All owners at one priority."""

    now: float = 0.0  # the virtual time
    weight: float = 0.0  # of all together
    shares: dict[str, Share] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Share:
    """The live requests of one owner at one priority."""

    level: _Level
    owner: str
    served: float  # tokens by weight, in virtual time
    weight: float = 0.0
    num_live: int = 0
    num_running: int = 0
    waiting: list[Request] = field(default_factory=list)  # in order of arrival
    num_passed: int = 0  # so many of these, the first, stand still in this step


class FairQueue:
    """Requests that wait, and what is known of the owners of those that run.

    The scheduler tells when a request comes (`add`), ends (`discard`), is preempted (`put_back`)
    and is computed further (`charge`). It starts the `first` one with `take`, and closes every step
    with `end_step`.
    """

    def __init__(self, max_running: int, head_start: int) -> None:
        """`head_start`, in tokens, is what those within their share may be ahead."""
        self._max_running = max_running
        self._head_start = head_start
        self._levels: dict[int, _Level] = {}  # by -priority
        self._weight = 0.0  # of all levels
        self._num_live: Counter[str] = Counter()  # of each owner
        self._num_waiting = 0
        self._turns: list[_Entry] | None = (
            None  # a heap; those whose turn has moved on are too early
        )

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def is_shared(self) -> bool:
        """Whether there is more than one owner. If not, only priority and arrival count."""
        return len(self._num_live) > 1

    # Requests come and go

    def add(self, request: Request) -> None:
        """A new request waits."""
        level = self._levels.setdefault(request.order[0], _Level())
        share = level.shares.get(request.owner)
        if share is None:
            share = level.shares[request.owner] = Share(level, request.owner, level.now)
        elif not share.waiting:
            share.served = max(share.served, level.now)
        self._weigh(share, request.weight)
        share.num_live += 1
        self._num_live[request.owner] += 1
        request.share = share
        self._insert(request)

    def put_back(self, request: Request) -> None:
        """A running request waits again."""
        request.share.num_running -= 1
        self._insert(request)

    def discard(self, request: Request, *, was_running: bool) -> None:
        """A request has ended."""
        share = request.share
        if was_running:
            share.num_running -= 1
        else:
            del share.waiting[bisect_left(share.waiting, request.order, key=_ORDER)]
            self._num_waiting -= 1
            self._turns = None
        share.num_live -= 1
        if not share.num_live:
            self._weigh(share, 0.0)
            del share.level.shares[share.owner]
            if not share.level.shares:
                del self._levels[request.order[0]]
        self._num_live[share.owner] -= 1
        if not self._num_live[share.owner]:
            del self._num_live[share.owner]

    def _insert(self, request: Request) -> None:
        insort(request.share.waiting, request, key=_ORDER)
        self._num_waiting += 1
        self._turns = None

    def _weigh(self, share: Share, weight: float) -> None:
        more = weight - share.weight
        share.weight += more
        share.level.weight += more
        self._weight += more

    # Who is served, how much

    def charge(self, request: Request, num_tokens: int) -> None:
        """So many more tokens of a request are about to be computed."""
        charged = max(request.num_computed, request.num_charged)
        num_tokens += request.num_computed - charged
        if num_tokens > 0:
            request.num_charged = charged + num_tokens
            share = request.share
            share.served += num_tokens / share.weight
            share.level.now += num_tokens / share.level.weight

    def end_step(self) -> None:
        """Nobody starts any more in this step: the clocks move on."""
        self._turns = None
        for level in self._levels.values():
            shares = level.shares.values()
            waiting = [share.served for share in shares if share.waiting]
            served = min(waiting) if waiting else max(share.served for share in shares)
            level.now = max(level.now, served)
            for share in shares:
                share.num_passed = 0

    def is_within(self, share: Share) -> bool:
        """Whether this owner has no more live requests than its part of the rows; one at least."""
        if share.num_live == 1:
            return True
        return share.num_live * self._weight <= self._max_running * share.weight

    def may_join(self, owner: str, priority: int, weight: float) -> bool:
        """Whether an owner would be within its share with one more request."""
        level = self._levels.get(-priority)
        share = None if level is None else level.shares.get(owner)
        if share is None:
            return True
        others = self._weight - share.weight
        return (share.num_live + 1) * (others + weight) <= self._max_running * weight

    def turn(self, request: Request) -> Turn:
        """When the turn of this request's prompt is. Who had begun already, of an owner within its
        share, goes on at once: its owner sees it stand still."""
        share = request.share
        when = share.served
        if self.is_within(share):
            if request.row == NO_ROW and request.scheduled_time:
                when = _AT_ONCE
            else:
                when -= self._head_start / share.weight
        return request.order[0], when

    # Who starts

    def first(self) -> Request | None:
        """Whose turn it is of those waiting that are not passed over."""
        turns = self._turns
        if turns is None:
            shares = [
                share
                for level in self._levels.values()
                for share in level.shares.values()
                if len(share.waiting) > share.num_passed
            ]
            turns = self._turns = list(map(self._entry, shares))
            heapq.heapify(turns)
        while turns:
            share = turns[0][-1]
            if len(share.waiting) <= share.num_passed:
                heapq.heappop(turns)
                continue
            entry = self._entry(share)
            if entry == turns[0]:
                return share.waiting[share.num_passed]
            heapq.heapreplace(turns, entry)
        return None

    def pass_over(self) -> None:
        """The first one stands still in this step, and lets others go."""
        assert self._turns
        self._turns[0][-1].num_passed += 1

    def take(self) -> None:
        """The first one starts."""
        assert self._turns
        share = self._turns[0][-1]
        del share.waiting[share.num_passed]
        share.num_running += 1
        self._num_waiting -= 1

    def _entry(self, share: Share) -> _Entry:
        request = share.waiting[share.num_passed]
        return self.turn(request), request.order[1], share

    # Who gives way

    def part_of(self, request: Request, budget: int) -> int:
        """How much of a step's budget is its owner's, by weight; none if that has more requests
        than its share."""
        share = request.share
        return int(budget * share.weight / self._weight) if self.is_within(share) else 0

    def for_start(
        self, request: Request, running: Iterable[Request], size: Size, needed: int
    ) -> Iterator[Request]:
        """Which of `running` may be preempted to let a waiting request start, one after the other:
        always the youngest of the owner that then holds most by weight. No owner within its share
        is among them, nor is so much taken from one that less is left to it than the request's
        owner has with the `needed` it asks for. That owner must be within its share, have nothing
        running, or be behind by more than a head start."""
        own, own_size = request.share, needed
        held: defaultdict[Share, int] = defaultdict(int)
        theirs: defaultdict[Share, list[Request]] = defaultdict(list)
        for other in running:
            share = other.share
            if share is own:
                own_size += size(other)
            elif share.owner != own.owner and other.order[0] >= request.order[0]:
                held[share] += size(other)
                theirs[share].append(other)
        if not self.is_within(own) and own.num_running:
            behind = own.served + self._head_start / own.weight
            ahead = [s for s in theirs if s.level is own.level and behind < s.served]
        else:
            ahead = list(theirs)
        beyond = [share for share in ahead if not self.is_within(share)]
        while beyond:
            largest = max(beyond, key=lambda share: held[share] / share.weight)
            victim = theirs[largest].pop()
            held[largest] -= size(victim)
            if held[largest] / largest.weight < own_size / own.weight:
                return
            yield victim

    def for_growth(self, request: Request, running: Sequence[Request], size: Size) -> Request:
        """Which of `running` makes room for one of them that finds no free block; itself if it is
        to stand still. As a rule the last one; but if owners hold more than their share, the
        youngest of the one that holds most, by weight: if it is behind the request in order, or
        enough is left to its owner. The first of all never gives way."""
        last = running[-1]
        if not self.is_shared:
            return last
        held: defaultdict[Share, int] = defaultdict(int)
        youngest: dict[Share, Request] = {}
        for other in running:
            held[other.share] += size(other)
            youngest[other.share] = other
        beyond = [
            share
            for share, each in youngest.items()
            if each.order[0] == last.order[0] and not self.is_within(share)
        ]
        if not beyond:
            return last
        largest = max(beyond, key=lambda share: held[share] / share.weight)
        victim, own = youngest[largest], request.share
        if victim is request:
            return last if request is running[0] else request
        if victim.order > request.order:
            return victim
        left = held[largest] - size(victim)
        enough = left / largest.weight > held[own] / own.weight
        return victim if enough else last
