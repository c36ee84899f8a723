"""Keeps rate limits over all servers of one database: beside the requests, never in their way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from dropless.errors import DroplessError
from dropless.server.quotas.quotas import Quotas
from dropless.server.quotas.tally import INTERVAL_S, Tally

if TYPE_CHECKING:
    from dropless.server.identity.database import Database
    from dropless.server.quotas.ledger import Ledger

logger = logging.getLogger("dropless.server")

_CLOSE_S = 5.0
_AT_ONCE = 1000  # slots that are taken up before requests have their turn again


class QuotaExchange:
    """Tells the database what this server lets in, and the quotas what the others did, every
    INTERVAL_S. While the database does not answer, this server counts alone, and tells it later."""

    def __init__(
        self,
        quotas: Quotas,
        database: Callable[[], Database | None],
        is_limited: Callable[[], bool],
    ) -> None:
        """`database` is None while there is none, `is_limited` false while nothing has a limit:
        then nothing is done."""
        self._quotas = quotas
        self._database = database
        self._is_limited = is_limited
        self._tally = Tally()
        self._ledger: Ledger | None = None
        self._away = False
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when what servers took before is known here, this one before a restart too."""
        await self._exchange()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Tells what is left to tell."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=_CLOSE_S)

    async def _run(self) -> None:
        while not await self._stops_within(INTERVAL_S):
            await self._exchange()
        await self._exchange()  # what came since the last one began

    async def _stops_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _exchange(self) -> None:
        if self._ledger is None:
            database = self._database()
            if database is None or not self._is_limited():
                return
            from dropless.server.quotas.ledger import Ledger  # takes a while to import

            self._ledger = Ledger(database)
            self._quotas.tally = self._tally
        if not self._is_limited():
            return
        # A slot that grows while it is written is among the next changes.
        changes = self._tally.changes(time.monotonic_ns())
        try:
            heard = await asyncio.to_thread(self._ledger.exchange, changes)
        except DroplessError as error:
            self._tally.tell_again(changes)
            if not self._away:
                logger.warning("rate limits count in this server alone for now: %s", error)
            self._away = True
            return
        if self._away:
            logger.warning("rate limits count over all servers again")
        self._away = False
        for first in range(0, len(heard), _AT_ONCE):
            self._quotas.hear(heard[first : first + _AT_ONCE])
            await asyncio.sleep(0)
