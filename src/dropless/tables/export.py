"""Sets of conversations for training and evaluation, as files of JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dropless.tables.conversations import (
    Conversation,
    Wanted,
    read_conversation,
    share_of,
    without_repetitions,
)
from dropless.tables.sql import TableQueries
from dropless.tables.table_name import TableName
from dropless.tables.table_store import TableStore


@dataclass(slots=True)
class Export:
    """What was done: conversations in each file, and why others are in none."""

    written: dict[Path, int]
    repeated: int = 0
    unfit: int = 0


def export_chats(
    store: TableStore,
    name: TableName,
    wanted: Wanted,
    out: Path,
    *,
    spool: Path | None = None,
    repetitions: bool = False,
    test_share: float | None = None,
) -> Export:
    """Write the conversations of a payload table, and of the spool before it, to `out`; of them
    the share `test_share` to a second file beside it, chosen by what they begin with, so that the
    choice stays the same when the table grows.

    Raises:
        TableError: there is no such table, `wanted.where` is wrong.
        OSError: a file cannot be written.
    """
    queries = TableQueries(store, [name], spool=spool)
    test = out.with_suffix(f".test{out.suffix}")
    done = Export({out: 0} if test_share is None else {out: 0, test: 0})
    fit = 0

    def read() -> Iterator[Conversation]:
        nonlocal fit
        fit = done.unfit = 0
        for row in queries.select(*wanted.sql(name)):
            conversation = read_conversation(*row)
            if conversation is not None and wanted.takes(conversation):
                fit += 1
                yield conversation
            else:
                done.unfit += 1

    with ExitStack() as stack:
        files = {path: stack.enter_context(path.open("wb")) for path in done.written}
        for conversation in read() if repetitions else without_repetitions(read):
            in_test = test_share is not None and share_of(conversation) < test_share
            path = test if in_test else out
            files[path].write(msgspec.json.encode(conversation.body()) + b"\n")
            done.written[path] += 1
    done.repeated = fit - sum(done.written.values())
    return done
