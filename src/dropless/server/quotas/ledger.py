"""What servers tell each other of their windows, through the database of users and tokens."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import lru_cache

import msgspec
from sqlalchemy import Connection, delete, select, text

from dropless.server.identity.database import Database
from dropless.server.identity.schema import QuotaServerRow, QuotaSlotRow
from dropless.server.quotas.quotas import Heard
from dropless.server.quotas.rate_limit import METERS
from dropless.server.quotas.tally import Slot, WindowKey

_MS = 1_000_000  # nanoseconds
_LONGEST_MS = 2 * max(meter.span_s for meter in METERS) * 1000
_CLEAN_EVERY_S = 10.0
_METERS = {meter.setting: meter for meter in METERS}

_WRITE_SLOT = text(
    "INSERT INTO quota_slots (server, slot, window_key, amount, ends_at, batch) "
    "VALUES (:server, :slot, :window_key, :amount, :ends_at, :batch) "
    "ON CONFLICT (server, slot) DO UPDATE SET amount = excluded.amount, batch = excluded.batch"
)
_WRITE_SERVER = text(
    "INSERT INTO quota_servers (server, batch, written_at) VALUES (:server, :batch, :written_at) "
    "ON CONFLICT (server) DO UPDATE "
    "SET batch = excluded.batch, written_at = excluded.written_at"
)
_NOW = text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)")


class Ledger:
    """One server's side of it. Each server writes rows of its own only, in batches that it counts,
    so that the others ask for what is newer than the last batch that they have seen. Not on an
    event loop, and on one thread at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._server = uuid.uuid4().hex
        self._batch = 0
        self._seen: dict[str, int] = {}  # the last batch of each other server
        self._clean_at = time.monotonic()

    def exchange(self, slots: Sequence[Slot]) -> list[Heard]:
        """Write what this server took, read what the others did since the last exchange. What is
        written twice counts once.

        Raises TokenStoreError, and then nothing is heard.
        """
        with self._database.answers():
            if slots:
                with self._database.engine.begin() as connection:
                    self._write(connection, slots)
            if time.monotonic() >= self._clean_at:
                with self._database.engine.begin() as connection:
                    self._clean(connection)
                self._clean_at = time.monotonic() + _CLEAN_EVERY_S
            with self._database.engine.connect() as connection:
                return self._read(connection)

    def _write(self, connection: Connection, slots: Sequence[Slot]) -> None:
        now, clock = self._clocks(connection)
        self._batch += 1
        mine = {"server": self._server, "batch": self._batch}
        rows = [
            {
                **mine,
                "slot": each.number,
                "window_key": _key_text(each.key),
                "amount": each.amount,
                "ends_at": clock + -(-(each.end - now) // _MS),
            }
            for each in slots
        ]
        connection.execute(_WRITE_SLOT, rows)
        connection.execute(_WRITE_SERVER, {**mine, "written_at": clock})

    def _read(self, connection: Connection) -> list[Heard]:
        now, clock = self._clocks(connection)
        others = select(QuotaServerRow.server, QuotaServerRow.batch).where(
            QuotaServerRow.server != self._server
        )
        servers = {row.server: row.batch for row in connection.execute(others)}
        heard = []
        for server, batch in servers.items():
            seen = self._seen.get(server, 0)
            if batch > seen:
                heard += self._read_server(connection, server, seen, now, clock)
        self._seen = servers
        return heard

    def _read_server(
        self, connection: Connection, server: str, seen: int, now: int, clock: int
    ) -> list[Heard]:
        newer = select(
            QuotaSlotRow.slot, QuotaSlotRow.window_key, QuotaSlotRow.amount, QuotaSlotRow.ends_at
        ).where(
            QuotaSlotRow.server == server, QuotaSlotRow.batch > seen, QuotaSlotRow.ends_at > clock
        )
        heard = []
        for slot, key_text, amount, ends_at in connection.execute(newer):
            key = _key_of(key_text)
            if key is not None:
                heard.append(Heard((server, slot), key, now + (ends_at - clock) * _MS, amount))
        return heard

    def _clean(self, connection: Connection) -> None:
        _, clock = self._clocks(connection)
        connection.execute(delete(QuotaSlotRow).where(QuotaSlotRow.ends_at <= clock))
        gone = QuotaServerRow.written_at < clock - _LONGEST_MS
        connection.execute(delete(QuotaServerRow).where(gone))

    def _clocks(self, connection: Connection) -> tuple[int, int]:
        """This server's clock in nanoseconds, and the one that all servers share in milliseconds,
        at the same moment: the clocks of two machines may differ."""
        if self._database.engine.dialect.name == "sqlite":
            return time.monotonic_ns(), time.time_ns() // _MS
        before = time.monotonic_ns()
        clock = int(connection.execute(_NOW).scalar_one())
        return (before + time.monotonic_ns()) // 2, clock


def _key_text(key: WindowKey) -> str:
    return msgspec.json.encode((key.endpoint, key.key, key.name, key.meter.setting)).decode()


@lru_cache(maxsize=10_000)
def _key_of(key_text: str) -> WindowKey | None:
    """None: a window that this version of Dropless does not know."""
    endpoint, key, name, setting = msgspec.json.decode(key_text, type=tuple[str, str, str, str])
    meter = _METERS.get(setting)
    return None if meter is None else WindowKey(endpoint, key, name, meter)
