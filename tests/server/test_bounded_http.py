"""Heads that are too large or too slow, and what else a connection may try; over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.server.identity.door import Door, standing
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MODEL_ID

HEAD_S = 1.0
KEPT_S = 2.5
HEAD_BYTES = 4096
GOOD = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    limits = {"head_timeout_s": HEAD_S, "max_head_bytes": HEAD_BYTES, "body_timeout_s": 1.0}
    limits["keep_alive_s"] = KEPT_S
    data: Path = tmp_path_factory.mktemp("data")
    with standing(data, limits=limits) as made:
        yield made


@contextmanager
def connected(door: Door) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", door.port), timeout=10) as connection:
        yield connection


def answer(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """Status and JSON body of what comes until the server closes."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]


def next_status(connection: socket.socket) -> int:
    """Of the next answer, read to its end."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status


def test_a_head_that_comes_byte_by_byte(door: Door) -> None:
    began = time.monotonic()
    with connected(door) as connection:
        for byte in GOOD * 10:
            try:
                connection.send(bytes([byte]))
            except OSError:
                break
            time.sleep(HEAD_S / len(GOOD) * 2)
            if connection in _readable(connection):
                break
        status, error = answer(connection)
    assert status == 408
    assert "within 1 s" in str(error["message"])
    assert time.monotonic() - began < HEAD_S + 2


def test_a_connection_rests_between_requests_for_a_while(door: Door) -> None:
    with connected(door) as connection:
        connection.sendall(GOOD)
        assert next_status(connection) == 200
        time.sleep(HEAD_S * 1.3)
        connection.sendall(GOOD)
        assert next_status(connection) == 200
        answered = time.monotonic()
        assert connection.recv(1) == b""
        assert KEPT_S - 0.5 < time.monotonic() - answered < KEPT_S + 2


def _readable(connection: socket.socket) -> list[socket.socket]:
    return select.select([connection], [], [], 0)[0]


@pytest.mark.parametrize("sent", [b"", b"GET"])
def test_a_connection_that_says_no_more_is_closed(door: Door, sent: bytes) -> None:
    with connected(door) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        while connection.recv(65536):
            pass
        assert time.monotonic() - began < HEAD_S + 2


def test_empty_lines_do_not_keep_a_connection_open(door: Door) -> None:
    with connected(door) as connection:
        connection.sendall(GOOD)
        assert next_status(connection) == 200
        began = time.monotonic()
        while not _readable(connection):
            connection.sendall(b"\r\n")
            time.sleep(0.1)
            assert time.monotonic() - began < HEAD_S + 2


def test_a_second_request_has_a_deadline_of_its_own(door: Door) -> None:
    with connected(door) as connection:
        for _ in range(3):
            connection.sendall(GOOD[:10])
            time.sleep(HEAD_S * 0.5)
            connection.sendall(GOOD[10:])
            assert next_status(connection) == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * HEAD_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * HEAD_BYTES + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"a" * HEAD_BYTES + b": x\r\n\r\n",
    ],
    ids=["target", "one value", "many headers", "one name"],
)
def test_a_head_that_is_too_large(door: Door, head: bytes) -> None:
    with connected(door) as connection:
        connection.sendall(head)
        status, error = answer(connection)
    assert status == 431
    assert error["code"] == "request_headers_too_large"
    assert str(HEAD_BYTES) in str(error["message"])


@pytest.mark.parametrize(
    "begin",
    [b"GET / HTTP/1.1\r\nX: ", b"GET /", b"GET / HTTP/1.1\r\n"],
    ids=["value", "url", "name"],
)
def test_a_head_without_an_end_is_not_kept(door: Door, begin: bytes) -> None:
    """100 MB of one header: the server says no long before."""
    sent = 0
    with connected(door) as connection:
        connection.sendall(begin)
        try:
            while sent < 100_000_000:
                sent += connection.send(b"a" * 65536)
        except OSError:
            pass
    assert sent < 20_000_000


def test_trailers_are_bounded_too(door: Door) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(door) as connection:
        connection.sendall(head + b"0\r\n" + b"X: a\r\n" * HEAD_BYTES + b"\r\n")
        status, _ = answer(connection)
    assert status == 431


def test_a_head_just_below_the_limit(door: Door) -> None:
    filler = b"a" * (HEAD_BYTES - 100)
    with connected(door) as connection:
        connection.sendall(GOOD[:-2] + b"X: " + filler + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_body_that_nobody_wants_does_not_keep_a_connection_open(door: Door) -> None:
    """It goes on after the answer; a deadline ends it, whatever dribbles in."""
    with connected(door) as connection:
        connection.sendall(GOOD[:-2] + b"Content-Length: 1000000000\r\n\r\n")
        assert next_status(connection) == 200
        deadline = time.monotonic() + 5
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                connection.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() < deadline


def test_an_answer_is_not_cut_by_half_a_request_behind_it(door: Door) -> None:
    """The deadline of the second is no concern of the first, here a body that is waited for."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
    with connected(door) as connection:
        connection.sendall(head + b"{}" + GOOD[:20])
        assert next_status(connection) == 400
        connection.sendall(GOOD[20:])
        assert next_status(connection) == 200


WISHES = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
}


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_who_wishes_for_another_protocol_and_an_end_gets_the_end(door: Door, wish: bytes) -> None:
    with connected(door) as connection:
        connection.sendall(GOOD[:-2] + b"Connection: keep-alive, Close\r\n" + wish + b"\r\n")
        began = time.monotonic()
        while connection.recv(65536):
            pass
        assert time.monotonic() - began < KEPT_S / 2


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
@pytest.mark.parametrize("parts", [1, 2, 200])
def test_who_would_rather_speak_another_protocol_is_answered_in_this_one(
    door: Door, wish: bytes, parts: int
) -> None:
    """As Java's client asks with its first request, body and all."""
    body = b'{"model": "nothing", "prompt": "hi"}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + wish
    sent = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    size = -(-len(sent) // parts)
    with connected(door) as connection:
        for at in range(0, len(sent), size):
            connection.sendall(sent[at : at + size])
            time.sleep(0.001)
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert "'nothing' is not served" in response.read().decode()
        connection.sendall(GOOD)
        assert next_status(connection) == 200


def test_no_tunnels(door: Door) -> None:
    with connected(door) as connection:
        connection.sendall(b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, _ = answer(connection)
    assert status == 400


SMUGGLED = {
    "both lengths": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    "a negative length": b"Content-Length: -5\r\n\r\n",
    "a length that is none": b"Content-Length: 5x\r\n\r\n12345",
    "an endless length": b"Content-Length: 99999999999999999999999\r\n\r\n",
    "a folded line": b"X: a\r\n b\r\n\r\n",
    "a space before the colon": b"Content-Length : 5\r\n\r\n12345",
    "a NUL": b"X: a\x00b\r\n\r\n",
    "a bare CR": b"X: a\rb\r\n\r\n",
    "a chunk size that is none": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "another encoding": b"Transfer-Encoding: gzip\r\n\r\nabc",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_what_two_parsers_could_read_in_two_ways_is_refused(door: Door, name: str) -> None:
    with connected(door) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + SMUGGLED[name])
        status, _ = answer(connection)
    assert status == 400


def test_a_client_that_leaves_with_a_second_request_behind_the_first(
    server: ServerProcess,
) -> None:
    """The first, which is being answered, ends at once."""
    asked = {"model": MODEL_ID, "prompt": "hi", "max_tokens": 1900, "ignore_eos": True}
    content = json.dumps({**asked, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    one = head + b"Content-Length: %d\r\n\r\n" % len(content) + content
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(one + one)
        connection.recv(1)
        server.wait_until_running()
    assert server.wait_until_idle(5.0)["running"] == 0
    assert "Traceback" not in "".join(server.errors)


def test_after_all_that_it_serves(door: Door) -> None:
    assert door.ask("GET", "/version").status_code == 200
