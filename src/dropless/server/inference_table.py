"""Logs every call in the inference table of its endpoint, and its tokens in the usage table.

What happens here is a few microseconds of encoding and one write to a file for each call that is
accepted and one for its end. All else is the business of the writer process.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dropless.errors import TableError
from dropless.server.call import Call
from dropless.server.endpoints.endpoint import Endpoint, ServedEntity
from dropless.server.endpoints.registry import EndpointRegistry
from dropless.server.identity.token import redacted
from dropless.tables.records import Record
from dropless.tables.rows import (
    MAX_LOGGED_BYTES,
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
from dropless.tables.settings import TablesSettings
from dropless.tables.spool import Spool, Stream
from dropless.tables.table_name import SERVED_ENTITIES, USAGE
from dropless.tables.writer_process import WriterConfig, WriterProcess, check_installed

logger = logging.getLogger("dropless.tables")

_MAX_OPEN_REQUEST_BYTES = 64 * 1024  # of a request that may never end
USAGE_STREAM = "usage"  # of endpoints without an inference table
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

    def health(self) -> dict[str, Any]:
        """What everybody may know: errors name folders."""
        return {
            "status": "failing" if self.spool_error or self.writer_error else "ok",
            "dropped_rows": self.dropped,
            "waiting_bytes": self.pending_bytes,
        }


@dataclass(frozen=True, slots=True)
class TablesPlace:
    """Where tables and spool are."""

    location: str
    storage_options: dict[str, str]
    spool: str


@dataclass(frozen=True, slots=True)
class _Logging:
    """Where the calls of one version of an endpoint go."""

    endpoint: Endpoint
    stream: Stream | None  # None: nowhere
    sampling_fraction: float | None = None  # None: no inference table
    usage: bool = False


class InferenceTables:
    """The CallObserver that feeds the tables. Everything of it runs on the event loop.

    Spool and writer begin with the first endpoint that wants them.
    """

    def __init__(self, settings: TablesSettings, data: Path, endpoints: EndpointRegistry) -> None:
        """`data` is the folder of what outlives the server.

        Raises:
            TableError: tables are wanted, but the spool's folder cannot be used, or what they need
                is not installed.
        """
        self._settings = settings
        self._data = data
        self._endpoints = endpoints
        self._spool: Spool | None = None
        self._writer: WriterProcess | None = None
        self._tables: dict[str, int | None] = {}  # with their retention, for the writer
        self._known: dict[str, _Logging] = {}  # by endpoint
        self._open: dict[str, _Logging] = {}  # by request id
        self._encoder = msgspec.json.Encoder()
        for endpoint in endpoints.list():
            self._known[endpoint.name] = self._prepare(endpoint)

    def began(self, call: Call) -> None:
        """Nothing yet: its endpoint may not be known before its body is read."""

    def accepted(self, call: Call) -> None:
        """It has a row from here on, should the server die: as long as nothing better is known
        one that says so."""
        logging_ = self._logging(call.endpoint)
        if logging_ is not None:
            self._open[call.request_id] = logging_
            self._append(logging_, call, ends=False)

    def ended(self, call: Call) -> None:
        logging_ = self._open.pop(call.request_id, None) or self._logging(call.endpoint)
        if logging_ is not None:
            self._append(logging_, call, ends=True)

    def names(self) -> dict[str, str]:
        """The payload table of each endpoint that has one."""
        settings = [(e.name, e.settings.inference_table_config) for e in self._endpoints.list()]
        return {name: str(table.table(name)) for name, table in settings if table and table.enabled}

    def place(self) -> TablesPlace:
        return TablesPlace(
            self._settings.location_in(self._data),
            self._settings.storage(),
            str(self._settings.spool_in(self._data)),
        )

    def status(self) -> TablesStatus | None:
        """None: no endpoint has wanted tables so far."""
        if self._spool is None or self._writer is None:
            return None
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
        if self._spool is None or self._writer is None:
            return True
        self._spool.close()
        return self._writer.close(timeout_s)

    def _logging(self, name: str) -> _Logging | None:
        """Of the endpoint as it is now; None if there is none or it logs nothing."""
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            return None
        known = self._known.get(name)
        if known is None or known.endpoint is not endpoint:
            try:
                known = self._prepare(endpoint)
            except TableError as error:
                logger.error("inference tables: the calls of %s are not logged: %s", name, error)
                known = _Logging(endpoint, None)
            self._known[name] = known
        return known if known.stream is not None else None

    def _prepare(self, endpoint: Endpoint) -> _Logging:
        """Find out where an endpoint's calls go, and note what it serves."""
        table = endpoint.settings.inference_table_config
        usage = endpoint.settings.usage_tracking_config.enabled
        has_table = table is not None and table.enabled
        if not (has_table or usage):
            return _Logging(endpoint, None)
        if self._spool is None:
            self._spool = self._begin()
        if table is None or not table.enabled:
            logging_ = _Logging(endpoint, self._spool.stream(USAGE_STREAM), None, usage)
        else:
            name = str(table.table(endpoint.name))
            self._tables[name] = table.retention_days
            stream = self._spool.stream(name)
            logging_ = _Logging(endpoint, stream, table.sampling_fraction, usage)
        if self._writer is None:
            self._writer = WriterProcess(self._config(self._spool))
        else:
            self._writer.configure(self._config(self._spool))
        rows = tuple(_entity_row(endpoint, entity) for entity in endpoint.entities)
        version = f"{endpoint.name} {endpoint.version}"
        self._spool.stream(USAGE_STREAM).append(Record(version, ends=True, rows=rows))
        return logging_

    def _begin(self) -> Spool:
        check_installed()
        folder = self._settings.spool_in(self._data)
        return Spool(folder, max_bytes=self._settings.max_spool_bytes)

    def _config(self, spool: Spool) -> WriterConfig:
        place = self.place()
        return WriterConfig(
            spool=place.spool,
            session=spool.session.name,
            location=place.location,
            storage_options=place.storage_options,
            flush_s=self._settings.flush_seconds,
            tables={str(USAGE): None, str(SERVED_ENTITIES): None, **self._tables},
        )

    def _append(self, logging_: _Logging, call: Call, *, ends: bool) -> None:
        try:
            rows = self._rows(logging_, call) if ends else self._rows_if_stopped(logging_, call)
            if rows and logging_.stream is not None:
                logging_.stream.append(Record(call.request_id, ends, rows))
        except Exception:  # a bug here must not reach a request
            logger.exception("inference tables: the row of %s cannot be made", call.request_id)

    def _rows(self, logging_: _Logging, call: Call) -> tuple[Row, ...]:
        rows: list[Row] = []
        if self._takes_payload(logging_, call):
            request, request_codes = _text(call.request_body, MAX_REQUEST_SIZE_EXCEEDED)
            response, response_codes = _text(self._response(call), MAX_RESPONSE_SIZE_EXCEEDED)
            rows.append(
                self._payload(
                    logging_,
                    call,
                    call.status_code,
                    round(call.execution_s * 1000),
                    request,
                    response,
                    (*request_codes, *response_codes),
                )
            )
        if logging_.usage:
            rows.append(self._usage(call, call.status_code))
        return tuple(rows)

    def _rows_if_stopped(self, logging_: _Logging, call: Call) -> tuple[Row, ...]:
        """Those of a call of which nobody will say how it ended."""
        rows: list[Row] = []
        if self._takes_payload(logging_, call):
            request, codes = _text(
                call.request_body, MAX_REQUEST_SIZE_EXCEEDED, _MAX_OPEN_REQUEST_BYTES
            )
            status = _STOPPED_STATUS
            rows.append(self._payload(logging_, call, status, None, request, _STOPPED_JSON, codes))
        if logging_.usage:
            rows.append(self._usage(call, _STOPPED_STATUS))
        return tuple(rows)

    def _takes_payload(self, logging_: _Logging, call: Call) -> bool:
        fraction = logging_.sampling_fraction
        return fraction is not None and sampled(call.request_id, fraction)

    def _response(self, call: Call) -> bytes | None:
        if call.response_body is not None:
            return self._encoder.encode(call.response_body)
        if call.error is not None:
            return self._encoder.encode({"error": {"message": call.error}})
        return None

    def _payload(
        self,
        logging_: _Logging,
        call: Call,
        status: int,
        execution_ms: int | None,
        request: str | None,
        response: str | None,
        codes: tuple[str, ...],
    ) -> PayloadRow:
        assert logging_.sampling_fraction is not None
        time_us = microseconds(call.arrival_time)
        return PayloadRow(
            databricks_request_id=call.request_id,
            request_date=day(time_us),
            client_request_id=call.client_request_id,
            request_time=time_us,
            status_code=status,
            sampling_fraction=logging_.sampling_fraction,
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


def _entity_row(endpoint: Endpoint, entity: ServedEntity) -> ServedEntityRow:
    return ServedEntityRow(
        served_entity_id=entity.entity_id,
        endpoint_name=endpoint.name,
        entity_name=entity.settings.model,
        entity_version=None,
        endpoint_config_version=endpoint.version,
        change_time=microseconds(endpoint.changed),
    )


def _text(
    body: bytes | None, code: str, max_bytes: int = MAX_LOGGED_BYTES
) -> tuple[str | None, tuple[str, ...]]:
    """As `logged`, without the tokens of our users, wherever they stand in it."""
    text, codes = logged(body or None, code, max_bytes)
    return None if text is None else redacted(text), codes
