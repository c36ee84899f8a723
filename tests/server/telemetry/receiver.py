"""A collector of traces: takes OTLP over HTTP and keeps the spans."""

from __future__ import annotations

import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_S = 15.0


class Receiver:
    """Listens from construction to `close`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[Resource] = []
        self.requests: list[tuple[str, dict[str, str]]] = []  # path and headers
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(self.path, dict(self.headers), body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.requests.append((path, headers))
        for spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(spans.resource)
            for scope in spans.scope_spans:
                self.spans += scope.spans

    def trace(self, request_id: str) -> dict[str, Span]:
        """The spans of a call by name, its own as "call", once all have come."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for span in self.spans:
                if attributes(span).get("dropless.request_id") == request_id:
                    children = [s for s in self.spans if s.parent_span_id == span.span_id]
                    return {"call": span, **{child.name: child for child in children}}
            time.sleep(0.05)
        raise AssertionError([attributes(span) for span in self.spans])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def attributes(span: Span | Resource) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        if kind == "array_value":
            value = [each.string_value for each in value.values]
        found[attribute.key] = value
    return found
