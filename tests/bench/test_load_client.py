"""The load client against a real socket: what it records, and how failures show."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from dropless.bench.load_client import LoadClient
from dropless.bench.metrics import RequestRecord, summarize
from dropless.bench.sse_client import Endpoint
from dropless.bench.workload import Lengths, Workload, make_workload
from dropless.errors import SettingsError

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
TOKEN = b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"text":"b","finish_reason":"length"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@contextmanager
def _server(answer: Answer) -> Iterator[str]:
    """A socket on which every request gets `answer`."""
    loop = asyncio.new_event_loop()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        try:
            await answer(writer)
            await writer.drain()
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(handle, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for handler in asyncio.all_tasks(loop):
            handler.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(handler)
        loop.close()


def _workload(requests: int = 1, concurrency: int = 1) -> Workload:
    lengths = Lengths.parse("3")
    return make_workload(
        requests=requests,
        arrival="closed",
        concurrency=concurrency,
        input_lengths=lengths,
        output_lengths=lengths,
    )


def _one(answer: Answer, timeout_s: float = 5.0) -> RequestRecord:
    with _server(answer) as url:
        return LoadClient(url, "m", timeout_s=timeout_s).run(_workload())[0]


def test_each_arrival_is_recorded() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for data in (TOKEN, TOKEN, LAST):
            await asyncio.sleep(0.02)
            # Split in the middle of an event: the client must put it together again.
            writer.write(_chunk(data[:9]) + _chunk(data[9:]))
        writer.write(_chunk(USAGE + DONE) + b"0\r\n\r\n")

    record = _one(answer)
    assert record.error is None
    assert (record.input_tokens, record.output_tokens) == (7, 3)
    assert len(record.arrivals) == 3
    assert record.ttft_s is not None
    assert record.ttft_s >= 0.02
    assert all(gap >= 0.01 for gap in record.itl_s)


def test_a_refusal_keeps_the_servers_message() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        body = b'{"error":{"message":"the queue is full"}}'
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)

    record = _one(answer)
    assert record.error == "429: the queue is full"
    assert record.ttft_s is None


def test_an_error_within_the_stream_fails_the_request() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + _chunk(TOKEN))
        writer.write(_chunk(b'data: {"error":{"message":"the engine died"}}\n\n') + b"0\r\n\r\n")

    assert _one(answer).error == "the engine died"


@pytest.mark.parametrize("tail", [b"", b"0\r\n\r\n"], ids=["cut", "ended"])
def test_a_stream_without_its_end_fails(tail: bytes) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + _chunk(TOKEN) + tail)

    record = _one(answer)
    assert record.error is not None
    assert summarize([record]).ttft is None


def test_silence_times_out() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        await asyncio.sleep(0.5)

    assert _one(answer, timeout_s=0.1).error == "no answer within 0.1 s"


def test_nobody_listening_is_a_failure_per_request() -> None:
    with _server(lambda _writer: asyncio.sleep(0)) as url:
        pass
    records = LoadClient(url, "m").run(_workload(requests=4, concurrency=2))
    assert len(records) == 4
    assert all(record.error is not None for record in records)


def test_a_closed_loop_never_exceeds_its_users() -> None:
    running, most = 0, 0

    async def answer(writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        writer.write(STREAM_HEAD + _chunk(LAST + USAGE + DONE) + b"0\r\n\r\n")

    with _server(answer) as url:
        records = LoadClient(url, "m").run(_workload(requests=12, concurrency=3))
    assert most == 3
    assert [record.index for record in records] == list(range(12))
    assert max(record.start_s for record in records) > 0.02  # the later ones waited for a user


def test_addresses() -> None:
    assert Endpoint.parse("localhost:9000").port == 9000
    assert Endpoint.parse("https://h/base/").path == "/base"
    with pytest.raises(SettingsError, match="no address"):
        Endpoint.parse("ftp://h")
