"""Servers' quotas beside a real database that comes and goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from dropless.server.identity.database import Database
from dropless.server.quotas.exchange import QuotaExchange
from dropless.server.quotas.quotas import Quotas
from dropless.server.quotas.rate_limit import RateLimit
from tests.server.quotas.test_quotas import ALICE, Endpoint

ENDPOINT = Endpoint((RateLimit(calls=10),))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


def current(quotas: Quotas) -> int:
    [use] = quotas.usage(ALICE, ENDPOINT)
    return int(use["current"])


async def until(quotas: Quotas, count: int) -> None:
    deadline = time.monotonic() + 10
    while current(quotas) != count:
        assert time.monotonic() < deadline, current(quotas)
        await asyncio.sleep(0.02)


def test_while_the_database_is_away_each_counts_alone(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def rename(old: str, new: str) -> None:
        with database.engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    async def serve() -> None:
        one, two = Quotas(), Quotas()
        exchanges = [QuotaExchange(quotas, lambda: database, lambda: True) for quotas in (one, two)]
        for exchange in exchanges:
            await exchange.start()
        await one.admit(ALICE, ENDPOINT, 1, 1)
        await until(two, 1)
        await asyncio.to_thread(rename, "quota_servers", "away")
        await one.admit(ALICE, ENDPOINT, 1, 1)
        await two.admit(ALICE, ENDPOINT, 1, 1)
        await asyncio.sleep(0.7)
        assert (current(one), current(two)) == (2, 2)
        assert caplog.text.count("in this server alone") == 2, "once for each server"
        await asyncio.to_thread(rename, "away", "quota_servers")
        await until(one, 3)
        await until(two, 3)
        assert caplog.text.count("over all servers again") == 2
        await one.admit(ALICE, ENDPOINT, 1, 1)
        for exchange in exchanges:  # tells, and then hears, what is left
            await exchange.close()
        assert current(two) == 4

    asyncio.run(serve())


def test_without_limits_the_database_is_left_alone(database: Database) -> None:
    async def serve() -> None:
        quotas = Quotas()
        for place, limited in ((database, False), (None, True)):
            exchange = QuotaExchange(quotas, lambda place=place: place, lambda on=limited: on)  # type: ignore[misc]
            await exchange.start()
            await exchange.close()
        assert quotas.tally is None

    asyncio.run(serve())
