"""Whether a request is let in now, or when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dropless.errors import InvalidRequestError, RateLimitError
from dropless.server.identity.principal import Principal
from dropless.server.quotas.rate_limit import RateLimit
from dropless.server.quotas.tally import Slot, Tally, WindowKey
from dropless.server.quotas.window import Entry, Window

_NS = 1_000_000_000
_SWEEP_FROM = 1000  # windows
RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{of}"
    for what in ("limit", "remaining", "reset")
    for of in ("requests", "tokens")
)


class Limited(Protocol):
    """What of an endpoint matters here."""

    @property
    def name(self) -> str: ...

    @property
    def rate_limits(self) -> Sequence[RateLimit]: ...


_Limits = dict[WindowKey, int]


@dataclass(slots=True)
class Reservation:
    """What a request was let in with. It may generate `output_tokens`, all its answers together;
    `headers` tell the client what is left, as OpenAI's clients know it."""

    output_tokens: int
    headers: Mapping[str, str]
    _taken: list[tuple[Window, Entry]] = field(default_factory=list)
    _slots: list[Slot] = field(default_factory=list)
    _tally: Tally | None = None
    _clock: Callable[[], int] = time.monotonic_ns
    _settled: bool = False

    def settle(self, output_tokens: int) -> None:
        """The request has ended and generated so many; the rest is given back. Only the first call
        counts. It waits for nothing, so that a cancelled request can settle too."""
        if self._settled:
            return
        self._settled = True
        now = self._clock()
        left = self.output_tokens - output_tokens
        for window, entry in self._taken:
            window.give_back(now, entry, left)
        if self._tally is not None:
            for slot in self._slots:
                self._tally.give_back(now, slot, left)


@dataclass(frozen=True, slots=True)
class Heard:
    """What another server has taken of a window, as `Window.hear` wants it."""

    source: tuple[str, int]  # the server and the number of its slot
    key: WindowKey
    end: int
    amount: int


class Quotas:
    """Counts in this process. `clock` gives nanoseconds that never go back. With a `tally`, it
    keeps what other servers are to be told; `hear` takes up what they tell."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.tally: Tally | None = None
        self._clock = clock
        self._windows: dict[WindowKey, Window] = {}
        self._sweep_at = _SWEEP_FROM

    async def admit(
        self, principal: Principal, endpoint: Limited, input_tokens: int, max_output_tokens: int
    ) -> Reservation:
        """Take what the request needs of every window that it belongs to, or of none.

        `max_output_tokens` is what it may generate at most. If a limit lets through less in a whole
        minute, it is let in for that.

        Raises:
            RateLimitError: with the limit that keeps it out longest.
            InvalidRequestError: the prompt alone is more than a limit ever lets through.
        """
        now = self._clock()
        self._sweep(now)
        refusals = []
        impossible: list[InvalidRequestError] = []
        for limits in _alternatives(principal, endpoint):
            try:
                output_tokens = _possible_output(limits, input_tokens, max_output_tokens)
            except InvalidRequestError as error:
                impossible.append(error)
                continue
            needs = [(key, key.meter.amount(input_tokens, output_tokens)) for key in limits]
            waits = [self._window(key).wait(now, need, limits[key]) for key, need in needs]
            if not any(waits):
                return self._take(now, limits, needs, output_tokens)
            longest = max(range(len(needs)), key=waits.__getitem__)
            key, need = needs[longest]
            refusals.append((waits[longest], key, limits[key], need))
        if not refusals:
            raise impossible[0]
        wait, key, limit, need = min(refusals, key=lambda refusal: refusal[0])
        raise RateLimitError(
            f"Rate limit exceeded: {key.meter.name} limit of {limit:,} {key.meter.unit} reached",
            limit_type=key.meter.limit_type,
            limit=limit,
            current=self._window(key).total(now) + need,
            retry_after_s=wait / _NS,
        )

    def hear(self, told: Iterable[Heard]) -> None:
        """Other servers have taken this, or changed what they took."""
        now = self._clock()
        for heard in told:
            self._window(heard.key).hear(now, heard.source, heard.end, heard.amount)

    def usage(self, principal: Principal, endpoint: Limited) -> list[dict[str, Any]]:
        """Each limit that the principal is under, with what is taken of it now. Of several groups'
        limits, those of one group suffice to be let in."""
        now = self._clock()
        limits: _Limits = {}
        for alternative in _alternatives(principal, endpoint):
            limits |= alternative
        return [
            {
                "key": key.key,
                "principal": None if key.key == "endpoint" else key.name,
                "limit_type": key.meter.limit_type,
                "limit": limit,
                "current": self._window(key).total(now),
                "remaining": max(0, limit - self._window(key).total(now)),
                "reset_after": math.ceil(self._window(key).empty_in(now) / _NS),
            }
            for key, limit in limits.items()
        ]

    def _take(
        self, now: int, limits: _Limits, needs: list[tuple[WindowKey, int]], output_tokens: int
    ) -> Reservation:
        taken, slots = [], []
        for key, need in needs:
            entry = self._window(key).take(now, need)
            if key.meter.counts_output:
                taken.append((self._window(key), entry))
            if self.tally is not None:
                slot = self.tally.take(now, key, need)
                if key.meter.counts_output:
                    slots.append(slot)
        headers = self._headers(now, limits)
        return Reservation(output_tokens, headers, taken, slots, self.tally, self._clock)

    def _headers(self, now: int, limits: _Limits) -> dict[str, str]:
        """Of queries and of tokens, the limit of which least is left."""
        headers = {}
        for unit, name in (("queries", "requests"), ("tokens", "tokens")):
            keys = [key for key in limits if key.meter.unit == unit]
            if keys:
                left = {key: limits[key] - self._window(key).total(now) for key in keys}
                least = min(keys, key=left.__getitem__)
                headers[f"x-ratelimit-limit-{name}"] = str(limits[least])
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, left[least]))
                reset = self._window(least).empty_in(now)
                headers[f"x-ratelimit-reset-{name}"] = _duration(reset)
        return headers

    def _window(self, key: WindowKey) -> Window:
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window(key.meter.span_s)
        return window

    def _sweep(self, now: int) -> None:
        """Forget windows of which nothing is taken, whenever there are twice as many as were left
        the last time."""
        if len(self._windows) >= self._sweep_at:
            for key in [key for key, window in self._windows.items() if not window.empty_in(now)]:
                del self._windows[key]
            self._sweep_at = max(_SWEEP_FROM, 2 * len(self._windows))


def _alternatives(principal: Principal, endpoint: Limited) -> list[_Limits]:
    """Sets of limits of which one must have room. The endpoint's own are in all of them. Of those
    that limit the caller, entries for this very principal come before those of groups, and these
    before those for everyone; one group of theirs that has room will do."""
    shared: _Limits = {}
    own: _Limits = {}
    of_groups: dict[str, _Limits] = {}
    for_all: dict[str, _Limits] = {"user": {}, "service_principal": {}}
    for rate_limit in endpoint.rate_limits:
        name = rate_limit.principal
        if rate_limit.key == "endpoint":
            _add(shared, rate_limit, endpoint.name, "endpoint", endpoint.name)
        elif rate_limit.key == "user_group":
            if name is not None and name in principal.groups:
                _add(of_groups.setdefault(name, {}), rate_limit, endpoint.name, "user_group", name)
        elif name is None:
            limits = for_all[rate_limit.key]
            _add(limits, rate_limit, endpoint.name, principal.kind, principal.name)
        elif (rate_limit.key, name) == (principal.kind, principal.name):
            _add(own, rate_limit, endpoint.name, principal.kind, name)
    default = for_all[principal.kind] or for_all["user"]
    alternatives = [own] if own else list(of_groups.values()) or [default]
    return [{**shared, **limits} for limits in alternatives]


def _add(limits: _Limits, rate_limit: RateLimit, endpoint: str, kind: str, name: str) -> None:
    for meter, limit in rate_limit.limits().items():
        key = WindowKey(endpoint, kind, name, meter)
        limits[key] = min(limit, limits.get(key, limit))


def _possible_output(limits: _Limits, input_tokens: int, max_output_tokens: int) -> int:
    """How much of `max_output_tokens` the limits let through in a window of their own.

    Raises InvalidRequestError.
    """
    possible = max_output_tokens
    for key, limit in limits.items():
        meter = key.meter
        of_input = meter.amount(input_tokens, 0)
        least = 1 if meter.counts_output and max_output_tokens else 0
        if meter.unit == "tokens" and of_input + least > limit:
            raise InvalidRequestError(
                f"the prompt has {input_tokens:,} tokens, more than the {meter.name} limit of "
                f"{limit:,} tokens ever lets through; shorten it",
                code="exceeds_rate_limit",
            )
        if meter.counts_output:
            possible = min(possible, limit - of_input)
    return possible


def _duration(nanoseconds: int) -> str:
    """As OpenAI writes it: 12ms, 7s, 6m0s."""
    if nanoseconds < _NS:
        return f"{math.ceil(nanoseconds / 1_000_000)}ms"
    minutes, seconds = divmod(math.ceil(nanoseconds / _NS), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
