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
# -priority, virtual time, running requests by weight: the smaller, the sooner
Turn: TypeAlias = tuple[int, float, float]
_Entry: TypeAlias = "tuple[Turn, int, Share]"  # the number is the arrival of its first request


@dataclass(slots=True, eq=False)
class _Level:
    """All owners at one priority."""

    order: int  # -priority
    now: float = 0.0  # the virtual time
    most: float = 0.0  # of what its owners were served
    weight: float = 0.0  # of all together
    shares: dict[str, Share] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Share:
    """The live requests of one owner at one priority."""

    level: _Level
    owner: str
    served: float  # tokens by weight, in virtual time
    counted: float  # of `served`, what has moved the clock
    weight: float = 0.0
    num_live: int = 0
    num_running: int = 0
    has_started: bool = False  # a request, since this owner was away
    is_within: bool = True  # as of the beginning of the step
    waiting: list[Request] = field(default_factory=list)  # in order of arrival
    num_passed: int = 0  # so many of these, the first, stand still in this step


class FairQueue:
    """Requests that wait, and what is known of the owners of those that run.

    The scheduler tells when a request comes (`add`), ends (`discard`), is preempted (`put_back`)
    and is computed further (`charge`). In a step, which begins with `begin_step`, it starts the
    `first` one with `take` or lets others go before it with `pass_over`.
    """

    def __init__(self, max_running: int, head_start: int) -> None:
        """`head_start`, in tokens, is what those within their share may be ahead."""
        self._max_running = max_running
        self._head_start = head_start
        self._levels: dict[int, _Level] = {}  # by -priority
        self._weight = 0.0  # of all levels
        self._num_live: Counter[str] = Counter()  # of each owner
        self._num_waiting = 0
        self._turns: list[_Entry] = []  # a heap; one whose turn has moved on may stand too early

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def is_shared(self) -> bool:
        """Whether there is more than one owner. If not, only priority and arrival count."""
        return len(self._num_live) > 1

    # Requests come and go

    def may_join(self, owner: str, priority: int, weight: float) -> bool:
        """Whether an owner would be within its share with one more request."""
        level = self._levels.get(-priority)
        share = None if level is None else level.shares.get(owner)
        if share is None:
            return True
        whole = self._weight - share.weight + weight
        return self._fits(share.num_live + 1, weight, whole)

    def add(self, request: Request) -> None:
        """A new request waits."""
        order = request.order[0]
        level = self._levels.setdefault(order, _Level(order))
        share = level.shares.get(request.owner)
        if share is None:
            share = level.shares[request.owner] = Share(level, request.owner, level.now, level.now)
        elif not share.waiting:
            behind = max(0.0, level.now - share.served)
            share.served += behind
            share.counted += behind
        self._weigh(share, request.weight)
        share.num_live += 1
        self._num_live[request.owner] += 1
        request.share = share
        insort(share.waiting, request, key=_ORDER)
        self._num_waiting += 1

    def put_back(self, request: Request) -> None:
        """A running request waits again, and may start in the same step."""
        share = request.share
        share.num_running -= 1
        insort(share.waiting, request, key=_ORDER)
        self._num_waiting += 1
        heapq.heappush(self._turns, self._entry(share))

    def discard(self, request: Request, *, was_running: bool) -> None:
        """A request has ended."""
        share = request.share
        if was_running:
            share.num_running -= 1
        else:
            del share.waiting[bisect_left(share.waiting, request.order, key=_ORDER)]
            self._num_waiting -= 1
        self._num_live[share.owner] -= 1
        if not self._num_live[share.owner]:
            del self._num_live[share.owner]
        share.num_live -= 1
        if not share.num_live:
            self._leave(share)

    def _leave(self, share: Share) -> None:
        level = share.level
        level.now += (share.served - share.counted) * share.weight / level.weight
        self._weigh(share, 0.0)
        del level.shares[share.owner]
        if not level.shares:
            del self._levels[level.order]

    def _weigh(self, share: Share, weight: float) -> None:
        more = weight - share.weight
        share.weight += more
        share.level.weight += more
        self._weight += more

    def _fits(self, num_live: int, weight: float, whole: float) -> bool:
        """Whether so many live requests are within the share of one by `weight` of the `whole`."""
        return num_live == 1 or num_live * whole <= self._max_running * weight

    # Who is served, how much

    def charge(self, request: Request, num_tokens: int) -> None:
        """So many more tokens of a prompt are about to be computed."""
        charged = max(request.num_computed, request.num_charged)
        num_tokens += request.num_computed - charged
        if num_tokens > 0:
            request.num_charged = charged + num_tokens
            request.share.served += num_tokens / request.share.weight

    def charge_each(self, requests: Iterable[Request]) -> None:
        """One more token of each is about to be computed."""
        for request in requests:
            if request.num_computed >= request.num_charged:  # else the last of a prompt, or again
                share = request.share
                share.served += 1.0 / share.weight

    def begin_step(self) -> None:
        """The clocks move on by what was computed, and nobody is passed over any more."""
        self._turns = turns = []
        rows, whole = self._max_running, self._weight
        for level in self._levels.values():
            tokens, least, most = 0.0, math.inf, 0.0
            for share in level.shares.values():  # may be hundreds: calls cost more than they do
                served, weight, num_live = share.served, share.weight, share.num_live
                if served > most:
                    most = served
                if served != share.counted:
                    tokens += (served - share.counted) * weight
                    share.counted = served
                share.is_within = num_live == 1 or num_live * whole <= rows * weight  # as `_fits`
                share.num_passed = 0
                if share.waiting:
                    if served < least:
                        least = served
                    turns.append(self._entry(share))
            level.most = most
            level.now = max(level.now + tokens / level.weight, min(least, most))
        heapq.heapify(turns)

    # Who starts

    def turn(self, request: Request, *, is_long: bool = False) -> Turn:
        """When the turn of this request's prompt is. Who had begun already, of an owner within its
        share, goes on at once: its owner sees it stand still. A long one keeps the turn that it had
        in the beginning, or all long ones together would be computed at the pace of the last."""
        share = request.share
        when = request.began_at if is_long else share.served
        if share.is_within:
            if request.scheduled_time and request.row == NO_ROW:
                when = _AT_ONCE
            else:
                when -= self._head_start / share.weight
        return request.order[0], when, share.num_running / share.weight

    def first(self) -> Request | None:
        """Whose turn it is of those waiting that are not passed over."""
        turns = self._turns
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

    def pass_over(self, request: Request) -> None:
        """The first one stands still in this step, and lets others go."""
        request.share.num_passed += 1

    def take(self, request: Request) -> None:
        """The first one starts."""
        share = request.share
        del share.waiting[share.num_passed]
        share.num_running += 1
        share.has_started = True
        request.began_at = share.served
        self._num_waiting -= 1

    def _entry(self, share: Share) -> _Entry:
        request = share.waiting[share.num_passed]
        return self.turn(request), request.order[1], share

    # Who gives way

    def part_of(self, share: Share, budget: int) -> int:
        """How much of a step's budget is this owner's, by weight."""
        return int(budget * share.weight / self._weight)

    def for_start(
        self, request: Request, running: Iterable[Request], size: Size, needed: int
    ) -> Iterator[Request]:
        """Which of `running` may be preempted to let a waiting request start, one after the other:
        always the youngest of the owner that then holds most by weight.
        No owner within its share is among them, nor is so much taken from one that less is left to
        it than the request's owner has with the `needed` it asks for. That owner must be within its
        share, new, or behind by more than a head start."""
        own, own_size = request.share, needed
        held = dict.fromkeys(self._who_gives_way(request), 0)
        if not held:
            return
        theirs: defaultdict[Share, list[Request]] = defaultdict(list)
        for other in running:
            share = other.share
            if share is own:
                own_size += size(other)
            elif share in held:
                held[share] += size(other)
                theirs[share].append(other)
        while True:
            largest = max(held, key=lambda share: held[share] / share.weight)
            if not theirs[largest]:
                return
            victim = theirs[largest].pop()
            held[largest] -= size(victim)
            if held[largest] / largest.weight < own_size / own.weight:
                return
            if not (own.is_within or self._is_worth(victim, own)):
                return
            yield victim

    def _who_gives_way(self, request: Request) -> list[Share]:
        own = request.share
        behind = (own.level.most - own.served) * own.weight
        if not own.is_within and own.has_started and behind <= self._head_start:
            return []
        return [
            share
            for order, level in self._levels.items()
            if order >= request.order[0]
            for share in level.shares.values()
            if share.num_running > 1 and not share.is_within and share.owner != own.owner
        ]

    def _is_worth(self, victim: Request, own: Share) -> bool:
        """Whether an owner not within its share may have this one preempted: new, or so far behind
        that more than a head start is left when the victim is computed again. So where rows come
        free by themselves nobody is preempted for what one prompt more or less makes."""
        other = victim.share
        ahead = (other.served - own.served) * min(other.weight, own.weight)
        is_behind = other.level is own.level and ahead > self._head_start + len(victim.token_ids)
        return is_behind or not own.has_started

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
            if each.order[0] == last.order[0] and not share.is_within
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
