"""What the dashboard sees of the inference tables, found by a process of its own.

That process starts with the first question and ends when nobody has asked for a while.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import sys
from typing import Any

import msgspec

from dropless.errors import InvalidRequestError, ResourceNotFoundError, TableError
from dropless.server.inference_table import InferenceTables
from dropless.tables.rows import microseconds
from dropless.tables.search_messages import LENGTH, Answer, FoundCall, Question, framed
from dropless.tables.search_query import Search

logger = logging.getLogger("dropless.tables")

ANSWER_S = 30.0
_IDLE_S = 300.0
_PREVIEW_CHARACTERS = 1000


class InferenceRows:
    """Searches the tables of the endpoints that have one."""

    def __init__(self, tables: InferenceTables) -> None:
        self._tables = tables
        self._asking = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._end: asyncio.TimerHandle | None = None

    async def search(
        self,
        *,
        endpoint: str | None,
        text: str | None,
        requester: str | None,
        status: str | None,
        since: float | None,
        until: float | None,
        cursor: str | None,
        limit: int,
    ) -> dict[str, Any]:
        """{"rows": [...], "cursor": str | None}, newest first, bodies cut short. `text` is a
        substring of request or response, `status` is "200" or a class like "4xx".

        Raises:
            ResourceNotFoundError: no endpoint has an inference table.
            InvalidRequestError: the cursor is none of ours.
            TableError: the tables cannot be read.
        """
        wanted = Search(
            text=text,
            status_codes=None if status is None else _codes(status),
            requester=requester,
            since=None if since is None else microseconds(since),
            until=None if until is None else microseconds(until),
            before=None if cursor is None else _decoded(cursor),
        )
        names = self._names(endpoint)
        calls = await self._find(names, wanted, limit, _PREVIEW_CHARACTERS) if names else []
        last = calls[-1] if len(calls) == limit else None
        return {
            "rows": [self._row(call) for call in calls],
            "cursor": None if last is None else _encoded(last),
        }

    async def row(self, databricks_request_id: str) -> dict[str, Any] | None:
        """One row with its whole request and response. Raises as `search`."""
        wanted = Search(request_id=databricks_request_id)
        calls = await self._find(self._names(None), wanted, 1, None)
        return self._row(calls[0]) if calls else None

    async def close(self) -> None:
        async with self._asking:
            self._stop()

    def _names(self, endpoint: str | None) -> list[str]:
        """Of the tables to look at."""
        tables = self._tables.names()
        if not tables:
            raise ResourceNotFoundError(
                "no endpoint has an inference table; set inference_table_config.enabled: true in "
                "the endpoint's configuration"
            )
        return sorted({table for name, table in tables.items() if endpoint in (None, name)})

    def _row(self, call: FoundCall) -> dict[str, Any]:
        tables = self._tables.names()
        endpoint = next((name for name, table in tables.items() if table == call.table), "")
        return {"endpoint": endpoint, **msgspec.structs.asdict(call)}

    async def _find(
        self, names: list[str], wanted: Search, limit: int, max_characters: int | None
    ) -> list[FoundCall]:
        place = self._tables.place()
        question = Question(
            location=place.location,
            storage_options=place.storage_options,
            spool=place.spool,
            tables=names,
            wanted=wanted,
            limit=limit,
            max_characters=max_characters,
        )
        async with self._asking:
            try:
                async with asyncio.timeout(ANSWER_S):
                    answer = await self._ask(question)
            except BaseException as error:  # also who asks may be gone, in the middle of an answer
                self._stop()
                if isinstance(error, TimeoutError):
                    raise TableError(
                        f"the search took more than {ANSWER_S:g} s; search for less, or a shorter "
                        "time"
                    ) from None
                if isinstance(error, asyncio.IncompleteReadError | ConnectionError):
                    raise TableError("the search failed; the log says why") from None
                raise
        if answer.error is not None:
            raise TableError(answer.error)
        return answer.calls

    async def _ask(self, question: Question) -> Answer:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dropless.tables.search_worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        if self._end is not None:
            self._end.cancel()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(framed(question))
        await self._process.stdin.drain()
        [length] = LENGTH.unpack(await self._process.stdout.readexactly(LENGTH.size))
        data = await self._process.stdout.readexactly(length)
        self._end = asyncio.get_running_loop().call_later(_IDLE_S, self._stop)
        return msgspec.msgpack.decode(data, type=Answer)

    def _stop(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            self._process = None


def _codes(status: str) -> tuple[int, int]:
    """ "4xx" -> (400, 499)."""
    if status.endswith("xx"):
        first = int(status[0]) * 100
        return first, first + 99
    return int(status), int(status)


def _encoded(call: FoundCall) -> str:
    """Where to go on after this call."""
    place = msgspec.msgpack.encode((call.request_time_us, call.databricks_request_id))
    return base64.urlsafe_b64encode(place).decode()


def _decoded(cursor: str) -> tuple[int, str]:
    try:
        place = base64.urlsafe_b64decode(cursor.encode("ascii"))
        return msgspec.msgpack.decode(place, type=tuple[int, str])
    except (UnicodeError, binascii.Error, msgspec.MsgspecError):
        raise InvalidRequestError(
            "cursor must be one that an earlier answer had", param="cursor"
        ) from None
