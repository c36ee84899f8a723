"""The engine process on a bare socket: what other clients, broken or gone, do to it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from dropless.engine import transport
from dropless.engine.client import DEFAULT_BUILDER
from dropless.engine.config import EngineConfig
from dropless.engine.messages import (
    AbortRequests,
    EngineReady,
    Ping,
    RequestRefused,
    Shutdown,
    StepDeltas,
)
from dropless.engine.supervisor import spawn

from .bare_client import BareClient, ends
from .traffic import make_request


@pytest.fixture(scope="module")
def directory(tiny_config: EngineConfig) -> Iterator[Path]:
    """The folder of a running engine process."""
    with tempfile.TemporaryDirectory(prefix="dropless-") as name:
        transport.write_config(Path(name), tiny_config)
        process = spawn(Path(name), DEFAULT_BUILDER)
        yield Path(name)
        process.kill()
        process.wait()


@pytest.fixture
def connect(directory: Path) -> Iterator[Callable[[], BareClient]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def make() -> BareClient:
        client = BareClient(context, directory)
        client.send(Ping(0))
        client.wait_for(lambda message: isinstance(message, EngineReady))
        return client

    yield make
    context.destroy(linger=0)


def test_every_new_client_is_told_that_the_engine_is_ready(
    connect: Callable[[], BareClient],
) -> None:
    for _ in range(2):
        connect().assert_serving()


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"not msgpack"],
        [b"\xc1" * 100],
        [b"\x91" * 100_000],
        [msgspec.msgpack.encode({"type": "request", "request_id": 7})],
        [msgspec.msgpack.encode({"type": "unheard-of"})],
        [msgspec.msgpack.encode(Ping(1)), b"a second frame"],
        [
            msgspec.msgpack.encode(
                {
                    "type": "request",
                    "request_id": "hot",
                    "prompt_token_ids": [5],
                    "params": {"temperature": 1e9},
                }
            )
        ],
    ],
    ids=["empty", "text", "reserved", "deep", "type", "tag", "two-frames", "out-of-range"],
)
def test_a_malformed_message_is_ignored(
    connect: Callable[[], BareClient], frames: list[bytes]
) -> None:
    client = connect()
    client.socket.send_multipart(frames)
    client.assert_serving()


def test_a_message_beyond_the_limit_costs_its_sender_the_connection_only(
    connect: Callable[[], BareClient],
) -> None:
    bystander, sender = connect(), connect()
    sender.socket.send(b"\x00" * (transport.MAX_REQUEST_BYTES + 1))
    bystander.assert_serving()


def test_requests_of_a_client_that_is_gone_are_aborted(connect: Callable[[], BareClient]) -> None:
    bystander, leaver = connect(), connect()
    generated = bystander.stats().generated_tokens
    for _ in range(4):
        leaver.send(make_request(450))
    leaver.wait_for(lambda message: isinstance(message, StepDeltas))
    leaver.socket.close(linger=0)
    deadline = time.monotonic() + 10
    while (stats := bystander.stats()).running or stats.kv_blocks_free < stats.kv_blocks_total:
        assert time.monotonic() < deadline
    assert stats.generated_tokens - generated < 4 * 450


def test_a_client_cannot_touch_requests_of_another(connect: Callable[[], BareClient]) -> None:
    owner, other = connect(), connect()
    request = make_request(300)
    owner.send(request)
    owner.wait_for(lambda message: isinstance(message, StepDeltas))
    other.send(AbortRequests([request.request_id]))
    other.send(request)
    refused = other.wait_for(lambda message: isinstance(message, RequestRefused))
    assert isinstance(refused, RequestRefused)
    assert (refused.kind, refused.code) == ("InvalidRequestError", "duplicate_request_id")
    last = owner.wait_for(ends(request.request_id))
    assert isinstance(last, StepDeltas)
    assert last.deltas[-1].finish_reason == "length"


def test_shutdown_ends_the_process_cleanly(tiny_config: EngineConfig) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="dropless-") as name:
        transport.write_config(Path(name), tiny_config)
        process = spawn(Path(name), DEFAULT_BUILDER)
        client = BareClient(context, Path(name))
        client.send(Ping(0))
        client.wait_for(lambda message: isinstance(message, EngineReady))
        client.send(make_request(450))
        client.send(Shutdown())
        assert process.wait(timeout=10) == 0
    context.destroy(linger=0)


def test_the_client_side_imports_no_torch() -> None:
    code = "import sys, dropless.engine.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
