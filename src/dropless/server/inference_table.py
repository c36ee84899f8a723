"""Logs every call in the inference table of its endpoint, and its tokens in the usage table.

What happens here is a few microseconds of encoding and one write to a file for each call that is
accepted and one for its end. All else is the business of the writer process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dropless.server.call import Call
from dropless.tables.records import Record
from dropless.tables.rows import (
    MAX_REQUEST_SIZE_EXCEEDED,
    MAX_RESPONSE_SIZE_EXCEEDED,
    PayloadRow,
    Row,
    ServedEntityRow,
    UsageRow,
    day,
    logged,
    microseconds,
    sampled,
)
from dropless.tables.settings import (
    InferenceTableSettings,
    TablesSettings,
    UsageTrackingSettings,
)
from dropless.tables.spool import Spool, Stream
from dropless.tables.table_name import SERVED_ENTITIES, USAGE
from dropless.tables.writer_process import WriterConfig, WriterProcess, check_installed

logger = logging.getLogger("dropless.tables")

_MAX_OPEN_REQUEST_BYTES = 64 * 1024  # of a request that may never end
_USAGE_STREAM = "usage"  # of endpoints without an inference table
_STOPPED = {
    "error": {
        "message": "the server was stopped or killed before this call ended",
        "type": "server_error",
        "param": None,
        "code": "server_stopped",
    }
}
_STOPPED_JSON = msgspec.json.encode(_STOPPED).decode()
_STOPPED_STATUS = 500


@dataclass(frozen=True, slots=True)
class LoggedEndpoint:
    """What of an endpoint's calls is logged."""

    name: str
    inference_table: InferenceTableSettings | None
    usage_tracking: UsageTrackingSettings


@dataclass(frozen=True, slots=True)
class TablesStatus:
    """How logging goes. Rows wait in the spool, of `pending_bytes`, until the writer has brought
    them into their tables; records that could not even be spooled are dropped. Errors are the last
    failures of each side, None once it works."""

    records: int
    dropped: int
    pending_bytes: int | None  # None: the writer has not said so far
    rows: int
    spool_error: str | None
    writer_error: str | None


@dataclass(slots=True)
class _Logging:
    """Where an endpoint's calls go."""

    stream: Stream
    sampling_fraction: float | None  # None: no inference table
    usage: bool


class InferenceTables:
    """The CallObserver that feeds the tables. Everything of it runs on the event loop."""

    def __init__(
        self, settings: TablesSettings, data: Path, endpoints: Iterable[LoggedEndpoint]
    ) -> None:
        """`data` is the folder of what outlives the server. Starts the writer process.

        Raises:
            TableError: the spool's folder cannot be used, or what tables need is not installed.
        """
        check_installed()
        self._spool = Spool(settings.spool_in(data), max_bytes=settings.max_spool_bytes)
        self._config = WriterConfig(
            spool=str(self._spool.folder),
            session=self._spool.session.name,
            location=settings.location_in(data),
            storage_options=settings.storage(),
            flush_s=settings.flush_seconds,
            tables={},
        )
        self._endpoints: dict[str, _Logging] = {}
        self._open: dict[str, _Logging] = {}  # by request id
        self._encoder = msgspec.json.Encoder()
        self._configure(endpoints)
        self._writer = WriterProcess(self._config)

    def configure(self, endpoints: Iterable[LoggedEndpoint]) -> None:
        """From now on these endpoints are logged. Calls under way end where they began."""
        self._configure(endpoints)
        self._writer.configure(self._config)

    def _configure(self, endpoints: Iterable[LoggedEndpoint]) -> None:
        tables: dict[str, int | None] = {str(USAGE): None, str(SERVED_ENTITIES): None}
        self._endpoints = {}
        for endpoint in endpoints:
            table, usage = endpoint.inference_table, endpoint.usage_tracking.enabled
            if table is not None and table.enabled:
                name = str(table.table(endpoint.name))
                tables[name] = table.retention_days
                stream, fraction = self._spool.stream(name), table.sampling_fraction
            elif usage:
                stream, fraction = self._spool.stream(_USAGE_STREAM), None
            else:
                continue
            self._endpoints[endpoint.name] = _Logging(stream, fraction, usage)
        self._config = msgspec.structs.replace(self._config, tables=tables)

    def serve(self, entities: Iterable[ServedEntityRow]) -> None:
        """Note what is served from now on; what the table has already is not written again."""
        rows = tuple(entities)
        if rows:
            call = f"entities-{time.time_ns()}"
            self._spool.stream(_USAGE_STREAM).append(Record(call, ends=True, rows=rows))

    def began(self, call: Call) -> None:
        """Nothing yet: its endpoint may not be known before its body is read."""

    def accepted(self, call: Call) -> None:
        """It has a row from here on, should the server die: as long as nothing better is known
        one that says so."""
        where = self._endpoints.get(call.endpoint)
        if where is None:
            return
        self._open[call.request_id] = where
        self._append(where, call, ends=False)

    def ended(self, call: Call) -> None:
        where = self._open.pop(call.request_id, None) or self._endpoints.get(call.endpoint)
        if where is not None:
            self._append(where, call, ends=True)

    def status(self) -> TablesStatus:
        counters = self._spool.counters
        report = self._writer.report()
        return TablesStatus(
            records=counters.records,
            dropped=counters.dropped,
            pending_bytes=None if report is None else report.pending_bytes,
            rows=0 if report is None else report.rows,
            spool_error=counters.error,
            writer_error=None if report is None else report.error,
        )

    def close(self, timeout_s: float) -> bool:
        """No call is open any more. Returns whether all rows are in their tables; if that takes
        longer, the writer goes on by itself, and the next start finds what it leaves."""
        self._spool.close()
        return self._writer.close(timeout_s)

    def _append(self, where: _Logging, call: Call, *, ends: bool) -> None:
        try:
            rows = self._rows(where, call) if ends else self._rows_if_stopped(where, call)
            if rows:
                where.stream.append(Record(call.request_id, ends, rows))
        except Exception:  # a bug here must not reach a request
            self._spool.dropped(f"the row of {call.request_id} cannot be made")
            logger.exception("inference tables: the row of %s cannot be made", call.request_id)

    def _rows(self, where: _Logging, call: Call) -> tuple[Row, ...]:
        rows: list[Row] = []
        if self._takes_payload(where, call):
            request, request_codes = logged(call.request_body, MAX_REQUEST_SIZE_EXCEEDED)
            response, response_codes = logged(self._response(call), MAX_RESPONSE_SIZE_EXCEEDED)
            rows.append(
                self._payload(
                    where,
                    call,
                    call.status_code,
                    round(call.execution_s * 1000),
                    request,
                    response,
                    (*request_codes, *response_codes),
                )
            )
        if where.usage:
            rows.append(self._usage(call, call.status_code))
        return tuple(rows)

    def _rows_if_stopped(self, where: _Logging, call: Call) -> tuple[Row, ...]:
        """Those of a call of which nobody will say how it ended."""
        rows: list[Row] = []
        if self._takes_payload(where, call):
            request, codes = logged(
                call.request_body, MAX_REQUEST_SIZE_EXCEEDED, _MAX_OPEN_REQUEST_BYTES
            )
            status = _STOPPED_STATUS
            rows.append(self._payload(where, call, status, None, request, _STOPPED_JSON, codes))
        if where.usage:
            rows.append(self._usage(call, _STOPPED_STATUS))
        return tuple(rows)

    def _takes_payload(self, where: _Logging, call: Call) -> bool:
        fraction = where.sampling_fraction
        return fraction is not None and sampled(call.request_id, fraction)

    def _response(self, call: Call) -> bytes | None:
        if call.response_body is not None:
            return self._encoder.encode(call.response_body)
        if call.error is not None:
            return self._encoder.encode({"error": {"message": call.error}})
        return None

    def _payload(
        self,
        where: _Logging,
        call: Call,
        status: int,
        execution_ms: int | None,
        request: str | None,
        response: str | None,
        codes: tuple[str, ...],
    ) -> PayloadRow:
        assert where.sampling_fraction is not None
        time_us = microseconds(call.arrival_time)
        return PayloadRow(
            databricks_request_id=call.request_id,
            request_date=day(time_us),
            client_request_id=call.client_request_id,
            request_time=time_us,
            status_code=status,
            sampling_fraction=where.sampling_fraction,
            execution_duration_ms=execution_ms,
            request=request,
            response=response,
            logging_error_codes=codes,
            served_entity_id=call.served_entity_id or None,
            requester=None if call.principal is None else call.principal.name,
        )

    def _usage(self, call: Call, status: int) -> UsageRow:
        usage = call.usage
        return UsageRow(
            request_time=microseconds(call.arrival_time),
            status_code=status,
            requester=None if call.principal is None else call.principal.name,
            databricks_request_id=call.request_id,
            client_request_id=call.client_request_id,
            served_entity_id=call.served_entity_id or None,
            input_token_count=None if usage is None else usage.prompt_tokens,
            output_token_count=None if usage is None else usage.completion_tokens,
            usage_context=dict(call.usage_context) or None,
        )
