"""The process that searches tables for a server, `python -m dropless.tables.search_worker`.

It answers questions from its standard input, one after the other, until that ends. What a query
takes of memory and time it takes here.
"""

from __future__ import annotations

import heapq
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from dropless.errors import TableError
from dropless.tables.rows import US_PER_S, PayloadRow
from dropless.tables.search import search
from dropless.tables.search_messages import LENGTH, Answer, FoundCall, Question, framed
from dropless.tables.search_query import age
from dropless.tables.table_name import TableName
from dropless.tables.table_store import TableStore

_NICENESS = 10


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the server, which closes the pipe
    os.nice(_NICENESS)
    stores: dict[str, TableStore] = {}
    while (question := _read(sys.stdin.buffer)) is not None:
        store = stores.setdefault(
            question.location, TableStore(question.location, question.storage_options)
        )
        sys.stdout.buffer.write(framed(_answer(store, question)))
        sys.stdout.buffer.flush()


def _read(pipe: BinaryIO) -> Question | None:
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return msgspec.msgpack.decode(pipe.read(LENGTH.unpack(head)[0]), type=Question)


def _answer(store: TableStore, question: Question) -> Answer:
    found: list[tuple[str, PayloadRow]] = []
    try:
        for table in question.tables:
            name = TableName.parse(table)
            rows = search(store, Path(question.spool), name, question.wanted, question.limit)
            found += [(table, row) for row in rows]
    except TableError as error:
        return Answer([], str(error))
    except Exception as error:  # whatever storage raises; the next question may go well
        return Answer([], f"the tables cannot be read: {error}")
    newest = heapq.nlargest(question.limit, found, key=lambda item: age(item[1]))
    return Answer([_found(table, row, question.max_characters) for table, row in newest])


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Response(msgspec.Struct):
    usage: _Usage


def _found(table: str, row: PayloadRow, most: int | None) -> FoundCall:
    usage = _usage(row.response)
    return FoundCall(
        table=table,
        databricks_request_id=row.databricks_request_id,
        client_request_id=row.client_request_id,
        request_time=row.request_time / US_PER_S,
        request_time_us=row.request_time,
        status_code=row.status_code,
        sampling_fraction=row.sampling_fraction,
        execution_duration_ms=row.execution_duration_ms,
        request=row.request[:most] if row.request is not None else None,
        response=row.response[:most] if row.response is not None else None,
        logging_error_codes=list(row.logging_error_codes),
        served_entity_id=row.served_entity_id,
        requester=row.requester,
        input_token_count=usage.prompt_tokens,
        output_token_count=usage.completion_tokens,
    )


def _usage(response: str | None) -> _Usage:
    try:
        return msgspec.json.decode(response or "", type=_Response).usage
    except msgspec.MsgspecError:
        return _Usage()


if __name__ == "__main__":
    main()
