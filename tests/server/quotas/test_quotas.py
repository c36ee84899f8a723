"""Admission: whose limits hold, what is reserved and given back, and what a refusal says."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dropless.errors import InvalidRequestError, RateLimitError
from dropless.server.errors import to_http_error
from dropless.server.identity.principal import Principal
from dropless.server.quotas.quotas import Quotas, Reservation
from dropless.server.quotas.rate_limit import METERS, RateLimit

NS = 1_000_000_000
ALICE, BOB = Principal("alice"), Principal("bob")
ROBOT = Principal("robot", "service_principal")


@dataclass
class Endpoint:
    rate_limits: tuple[RateLimit, ...]
    name: str = "dbrx"


def at_once(admission: Coroutine[Any, Any, Reservation]) -> Reservation:
    """It waits for nothing, so nothing can be taken by half when its request is cancelled."""
    try:
        admission.send(None)
    except StopIteration as stop:
        reservation: Reservation = stop.value
        return reservation
    raise AssertionError("it waits")


class Desk:
    """Quotas with a clock that is set by hand."""

    def __init__(self, *limits: dict[str, Any], start_s: float = 1000.0) -> None:
        self.now = int(start_s * NS)
        self.quotas = Quotas(lambda: self.now)
        self.endpoint = Endpoint(tuple(RateLimit.model_validate(limit) for limit in limits))

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * NS)

    def admit(self, who: Principal = ALICE, input: int = 1, output: int = 1) -> Reservation:
        return at_once(self.quotas.admit(who, self.endpoint, input, output))

    def refusal(self, who: Principal = ALICE, input: int = 1, output: int = 1) -> RateLimitError:
        with pytest.raises(RateLimitError) as error:
            self.admit(who, input, output)
        return error.value

    def current(self, who: Principal = ALICE) -> dict[str, int]:
        return {use["limit_type"]: use["current"] for use in self.quotas.usage(who, self.endpoint)}


def test_the_documented_body() -> None:
    desk = Desk({"itpm": 200_000})
    desk.admit(input=100_000)
    desk.wait(45)
    desk.admit(input=99_000)
    refused = desk.refusal(input=1150)
    http = to_http_error(refused)
    assert http.status == 429
    assert http.body() == {
        "error": {
            "message": "Rate limit exceeded: ITPM limit of 200,000 tokens reached",
            "type": "rate_limit_exceeded",
            "code": 429,
            "limit_type": "input_tokens_per_minute",
            "limit": 200000,
            "current": 200150,
            "retry_after": 15,
        }
    }
    assert http.response().headers["retry-after"] == "15"


@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.setting)
def test_each_limit(meter: Any) -> None:
    desk = Desk({meter.setting: 10})
    if meter.unit == "queries":
        for _ in range(10):
            desk.admit()
    else:
        desk.admit(input=5, output=5)
        if not (meter.counts_input and meter.counts_output):
            desk.admit(input=5, output=5)
    desk.wait(meter.span_s / 4)
    refused = desk.refusal()
    assert refused.limit_type == meter.limit_type
    assert refused.limit == 10
    assert refused.current > 10
    assert meter.name in str(refused)
    assert refused.retry_after_s == pytest.approx(meter.span_s * 3 / 4)
    desk.wait(refused.retry_after_s - 0.001)
    desk.refusal()
    desk.wait(0.001)
    desk.admit()


def test_output_is_reserved_and_given_back() -> None:
    desk = Desk({"otpm": 100})
    first = desk.admit(output=80)
    assert first.output_tokens == 80
    assert desk.refusal(output=30).current == 110
    first.settle(10)
    assert desk.current() == {"output_tokens_per_minute": 10}
    desk.admit(output=90)
    first.settle(0)  # only the first call counts
    assert desk.current() == {"output_tokens_per_minute": 100}


def test_what_comes_back_after_the_window_changes_nothing() -> None:
    desk = Desk({"otpm": 100})
    first = desk.admit(output=80)
    desk.wait(60)
    desk.admit(output=100)
    first.settle(10)
    assert desk.current() == {"output_tokens_per_minute": 100}


def test_more_than_a_limit_ever_lets_through_is_let_in_for_the_limit() -> None:
    desk = Desk({"otpm": 100}, {"tokens": 130, "key": "user"})
    reservation = desk.admit(input=50, output=32_000)
    assert reservation.output_tokens == 80
    assert desk.current() == {"output_tokens_per_minute": 80, "tokens_per_minute": 130}


@pytest.mark.parametrize("limit", [{"itpm": 100}, {"tokens": 101}])
def test_a_prompt_that_no_wait_lets_in_is_told_so(limit: dict[str, int]) -> None:
    desk = Desk(limit)
    desk.admit(input=100, output=1)
    with pytest.raises(InvalidRequestError, match="shorten") as error:
        desk.admit(input=101, output=1)
    assert error.value.code == "exceeds_rate_limit"


def test_scoring_a_prompt_takes_no_output() -> None:
    desk = Desk({"tokens": 100, "otpm": 1})
    assert desk.admit(input=100, output=0).output_tokens == 0


def test_the_limit_that_keeps_out_longest_is_told() -> None:
    desk = Desk({"calls": 1}, {"qph": 1}, {"qps": 1})
    desk.admit()
    assert desk.refusal().limit_type == "queries_per_hour"
    assert desk.refusal().retry_after_s == 3600


def test_a_refused_request_takes_nothing() -> None:
    desk = Desk({"itpm": 100, "calls": 5, "qph": 2})
    desk.admit(input=10)
    before = desk.current()
    desk.refusal(input=95)
    assert desk.current() == before


def test_users_do_not_share_a_default_but_share_the_endpoint() -> None:
    desk = Desk({"key": "user", "calls": 2}, {"key": "endpoint", "calls": 3})
    desk.admit(ALICE)
    desk.admit(ALICE)
    assert desk.refusal(ALICE).limit == 2
    desk.admit(BOB)
    assert desk.refusal(BOB).limit == 3


def test_members_share_their_groups_limit() -> None:
    desk = Desk({"key": "user_group", "principal": "team", "calls": 2})
    a, b = Principal("a", groups=frozenset({"team"})), Principal("b", groups=frozenset({"team"}))
    desk.admit(a)
    desk.admit(b)
    desk.refusal(a)
    desk.refusal(b)
    for _ in range(5):
        desk.admit(ALICE)


def test_the_more_special_entry_counts() -> None:
    desk = Desk(
        {"key": "user", "calls": 1},
        {"key": "user_group", "principal": "team", "calls": 2},
        {"key": "user", "principal": "alice", "calls": 3},
        {"key": "service_principal", "principal": "alice", "calls": 1},
    )
    team = frozenset({"team"})
    for who, limit in ((BOB, 1), (Principal("m", groups=team), 2)):
        for _ in range(limit):
            desk.admit(who)
        assert desk.refusal(who).limit == limit
    alice = Principal("alice", groups=team)
    for _ in range(3):
        desk.admit(alice)
    assert desk.refusal(alice).limit == 3


def test_one_group_with_room_will_do() -> None:
    desk = Desk(
        {"key": "user_group", "principal": "small", "calls": 1, "itpm": 5},
        {"key": "user_group", "principal": "large", "calls": 2},
    )
    both = Principal("x", groups=frozenset({"small", "large"}))
    for _ in range(3):
        desk.admit(both)
    desk.wait(10)
    assert desk.refusal(both).retry_after_s == 50
    desk.wait(50)
    desk.admit(both, input=50)  # never by the small one
    assert desk.current(both)["input_tokens_per_minute"] == 0


def test_service_principals_are_under_their_own_default_or_that_of_users() -> None:
    users_only = Desk({"key": "user", "calls": 1})
    users_only.admit(ROBOT)
    assert users_only.refusal(ROBOT).limit == 1
    both = Desk({"key": "user", "calls": 1}, {"key": "service_principal", "calls": 2})
    both.admit(ROBOT)
    both.admit(ROBOT)
    assert both.refusal(ROBOT).limit == 2


def test_two_entries_for_one_are_the_smaller_one() -> None:
    desk = Desk({"calls": 5}, {"calls": 2}, {"calls": 4})
    desk.admit()
    desk.admit()
    assert desk.refusal().limit == 2


def test_endpoints_count_for_themselves_and_no_limits_are_none() -> None:
    desk = Desk({"calls": 1})
    desk.admit()
    other = Endpoint(desk.endpoint.rate_limits, "other")
    at_once(desk.quotas.admit(ALICE, other, 1, 1))
    free = Endpoint((), "free")
    reservation = at_once(desk.quotas.admit(ALICE, free, 10**9, 10**9))
    assert reservation.output_tokens == 10**9
    assert reservation.headers == {}
    reservation.settle(5)


def test_a_new_configuration_remembers_what_was_taken() -> None:
    desk = Desk({"calls": 3})
    for _ in range(3):
        desk.admit()
    desk.endpoint = Endpoint((RateLimit(calls=4, qph=100),))
    desk.admit()
    assert desk.refusal().limit == 4


def test_headers_as_openai_has_them() -> None:
    desk = Desk({"calls": 10, "qph": 1000}, {"key": "user", "itpm": 500, "otpm": 100})
    desk.admit(input=10, output=20)
    desk.wait(30.5)
    headers = desk.admit(input=10, output=20).headers
    assert headers == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "8",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "60",
        "x-ratelimit-reset-tokens": "1m0s",
    }


def test_ones_own_usage() -> None:
    desk = Desk({"calls": 10}, {"key": "user", "itpm": 500})
    desk.admit(ALICE, input=10)
    desk.admit(BOB, input=20)
    desk.wait(10)
    assert desk.quotas.usage(ALICE, desk.endpoint) == [
        {
            "key": "endpoint",
            "principal": None,
            "limit_type": "queries_per_minute",
            "limit": 10,
            "current": 2,
            "remaining": 8,
            "reset_after": 50,
        },
        {
            "key": "user",
            "principal": "alice",
            "limit_type": "input_tokens_per_minute",
            "limit": 500,
            "current": 10,
            "remaining": 490,
            "reset_after": 50,
        },
    ]


def test_windows_of_those_who_left_are_forgotten() -> None:
    desk = Desk({"key": "user", "calls": 10})
    for number in range(2500):
        desk.wait(1)
        desk.admit(Principal(f"user-{number}"))
    assert len(desk.quotas._windows) <= 1001


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "needs one of qps, calls, qph, itpm, otpm, tokens"),
        ({"key": "user", "principal": "a"}, "needs one of"),
        ({"calls": 0}, "greater than or equal to 1"),
        ({"calls": "5"}, "valid integer"),
        ({"calls": 5, "renewal_period": "hour"}, "'minute'"),
        ({"calls": 5, "key": "team"}, "'user_group'"),
        ({"calls": 5, "key": "user_group"}, "name the group"),
        ({"calls": 5, "key": "endpoint", "principal": "a"}, "leave principal out"),
        ({"call": 5}, "Extra inputs"),
    ],
)
def test_rate_limits_that_are_none(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RateLimit.model_validate(wrong)


LIMITS = st.lists(
    st.builds(
        RateLimit,
        key=st.sampled_from(["endpoint", "user"]),
        calls=st.integers(1, 5),
        qps=st.none() | st.integers(1, 2),
        qph=st.none() | st.integers(1, 8),
        itpm=st.none() | st.integers(10, 50),
        otpm=st.none() | st.integers(10, 50),
        tokens=st.none() | st.integers(20, 90),
    ),
    min_size=1,
    max_size=2,
)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 40_000_000_000),  # time passes, ns
        st.sampled_from([ALICE, BOB]),
        st.integers(0, 10),  # input
        st.integers(0, 60),  # at most so much output
        st.floats(0, 1),  # of which so much is generated
        st.integers(0, 5),  # so many steps later
    ),
    max_size=40,
)


@settings(max_examples=80)
@given(LIMITS, STEPS)
def test_no_window_is_ever_above_a_limit_and_retry_after_is_enough(
    limits: list[RateLimit], steps: list[tuple[int, Principal, int, int, float, int]]
) -> None:
    desk = Desk()
    desk.endpoint = Endpoint(tuple(limits))
    admitted: list[tuple[int, Principal, int, list[int]]] = []  # time, who, input, [output]
    running: list[tuple[int, Reservation, int, list[int]]] = []

    def check() -> None:
        for limit in limits:
            for meter, most in limit.limits().items():
                for who in (ALICE, BOB):
                    mine = [
                        meter.amount(input, output[0])
                        for at, whose, input, output in admitted
                        if at + meter.span_s * NS > desk.now
                        and (limit.key == "endpoint" or whose is who)
                    ]
                    assert sum(mine) <= most

    for number, (passes, who, input, output, share, later) in enumerate(steps):
        desk.now += passes
        for due, reservation, generated, cell in [*running]:
            if due <= number:
                reservation.settle(generated)
                cell[0] = generated
                running.remove((due, reservation, generated, cell))
        try:
            reservation = desk.admit(who, input, output)
        except RateLimitError as error:
            desk.now += round(error.retry_after_s * NS)
            reservation = desk.admit(who, input, output)
        assert 0 <= reservation.output_tokens <= output
        cell = [reservation.output_tokens]
        admitted.append((desk.now, who, input, cell))
        running.append((number + later, reservation, int(share * cell[0]), cell))
        check()
    for _, reservation, generated, cell in running:
        reservation.settle(generated)
        cell[0] = generated
    check()
    for use in desk.quotas.usage(ALICE, desk.endpoint):
        assert 0 <= use["current"] <= use["limit"]
