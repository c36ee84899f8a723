"""What servers took, in real databases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from dropless.errors import TokenStoreError
from dropless.server.identity.database import Database
from dropless.server.quotas.ledger import Ledger
from dropless.server.quotas.quotas import Heard
from dropless.server.quotas.rate_limit import METERS
from dropless.server.quotas.tally import Slot, WindowKey

MS = 1_000_000
METER = {meter.setting: meter for meter in METERS}
KEY = WindowKey('my "endpoint"', "user", "Zoë", METER["otpm"])


@contextmanager
def ledgers(url: str, count: int) -> Iterator[list[Ledger]]:
    databases = [Database(url) for _ in range(count)]
    yield [Ledger(database) for database in databases]
    for database in databases:
        database.close()


def slot(number: int, amount: int, ends_in_ms: int = 60_000) -> Slot:
    now = time.monotonic_ns()
    return Slot(number, KEY, now, now + ends_in_ms * MS, amount)


def amounts(heard: list[Heard]) -> dict[int, int]:
    return {each.source[1]: each.amount for each in heard}


def test_others_hear_what_is_new_and_nobody_hears_themselves(database_url: str) -> None:
    with ledgers(database_url, 3) as (one, two, three):
        first = slot(1, 10)
        assert one.exchange([first]) == []
        [heard] = two.exchange([slot(1, 5)])
        assert (heard.key, heard.amount) == (KEY, 10)
        assert abs(heard.end - first.end) < 50 * MS
        assert two.exchange([]) == []
        first.amount = 3
        assert amounts(one.exchange([first, slot(2, 7)])) == {1: 5}
        assert amounts(two.exchange([])) == {1: 3, 2: 7}
        assert sorted(each.amount for each in three.exchange([])) == [3, 5, 7]


def test_what_a_server_took_outlives_it_until_it_does_not_count(database_url: str) -> None:
    with ledgers(database_url, 1) as [one]:
        one.exchange([slot(1, 10, ends_in_ms=300), slot(2, 20)])
    with ledgers(database_url, 1) as [next_one]:
        assert amounts(next_one.exchange([])) == {1: 10, 2: 20}
    time.sleep(0.35)
    with ledgers(database_url, 1) as [later]:
        assert amounts(later.exchange([])) == {2: 20}
        with later._database.engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM quota_slots")) == 1


def test_a_write_that_fails_is_made_up_for(database_url: str) -> None:
    with ledgers(database_url, 2) as (one, two):
        two.exchange([slot(1, 1)])
        with one._database.engine.begin() as connection:
            connection.execute(text("ALTER TABLE quota_servers RENAME TO away"))
        mine = slot(1, 10)
        for ledger in (one, two):
            with pytest.raises(TokenStoreError, match="quota_servers"):
                ledger.exchange([mine])
        with one._database.engine.begin() as connection:
            connection.execute(text("ALTER TABLE away RENAME TO quota_servers"))
        assert amounts(one.exchange([mine])) == {1: 1}
        assert amounts(two.exchange([])) == {1: 10}


def test_windows_of_a_newer_version_are_passed_over(database_url: str) -> None:
    with ledgers(database_url, 2) as (one, two):
        one.exchange([slot(1, 10), slot(2, 20)])
        with one._database.engine.begin() as connection:
            change = "UPDATE quota_slots SET window_key = :key WHERE slot = 1"
            connection.execute(text(change), {"key": '["a","user","b","tokens_per_fortnight"]'})
        assert amounts(two.exchange([])) == {2: 20}
