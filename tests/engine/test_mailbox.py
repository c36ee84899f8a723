"""The mailbox between clients and the engine's main thread, without an engine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from dropless.engine import mailbox as mailbox_module
from dropless.engine import transport
from dropless.engine.mailbox import Mailbox
from dropless.engine.messages import (
    AbortRequests,
    EngineReady,
    EngineRequest,
    EngineStats,
    FromEngine,
    LoadProgress,
    Ping,
    Pong,
    Shutdown,
    StepDeltas,
    TokenDelta,
)

from .traffic import make_request

READY = EngineReady("tiny", "llama", 512, 512, 16, 128, 64, 64, "float32", "none", 1, 1, 0.1)


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dropless-") as name:
        yield Path(name)


@pytest.fixture
def mailbox(directory: Path) -> Iterator[Mailbox]:
    mailbox = Mailbox(directory, os.getppid())
    yield mailbox
    mailbox.close()


@pytest.fixture
def connect(directory: Path) -> Iterator[Callable[[], zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield lambda: transport.connect_client(context, directory)
    context.destroy(linger=0)


def receive(socket: zmq.Socket[bytes]) -> FromEngine:
    assert socket.poll(5000), "nothing arrived"
    return transport.decode_from_engine(socket.recv())


def test_deltas_of_a_step_come_as_one_message_per_client(
    mailbox: Mailbox, connect: Callable[[], zmq.Socket[bytes]]
) -> None:
    first, second = connect(), connect()
    mine, others = [make_request() for _ in range(3)], [make_request()]
    for socket, requests in ((first, mine), (second, others)):
        for request in requests:
            socket.send(transport.encode_to_engine(request))
    taken: list[object] = []
    while len(taken) < 4:
        taken += mailbox.take(wait=True)
    assert all(isinstance(request, EngineRequest) for request in taken)
    mailbox.post(StepDeltas([TokenDelta(r.request_id, [1]) for r in [*mine, *others]]))
    got = receive(first)
    assert isinstance(got, StepDeltas)
    assert [delta.request_id for delta in got.deltas] == [r.request_id for r in mine]
    got = receive(second)
    assert isinstance(got, StepDeltas)
    assert [delta.request_id for delta in got.deltas] == [others[0].request_id]


def test_pings_are_answered_during_a_step_with_its_duration(
    mailbox: Mailbox, connect: Callable[[], zmq.Socket[bytes]]
) -> None:
    socket = connect()
    mailbox.step_begins(EngineStats(running=3))
    socket.send(transport.encode_to_engine(Ping(7)))
    pong = receive(socket)
    assert isinstance(pong, Pong)
    assert (pong.nonce, pong.stats.running) == (7, 3)
    assert pong.step_running_s > 0
    mailbox.step_ends(EngineStats(running=0))
    socket.send(transport.encode_to_engine(Ping(8)))
    assert receive(socket) == Pong(nonce=8, step_running_s=0.0, stats=EngineStats())


def test_a_client_that_comes_late_hears_how_far_the_engine_is(
    mailbox: Mailbox, connect: Callable[[], zmq.Socket[bytes]]
) -> None:
    mailbox.post(LoadProgress("weights", 0.1))
    mailbox.post(LoadProgress("weights", 0.5))
    early = connect()
    early.send(transport.encode_to_engine(Ping(1)))
    while receive(early) != LoadProgress("weights", 0.5):
        pass
    mailbox.post(READY)
    late = connect()
    late.send(transport.encode_to_engine(Ping(1)))
    while not isinstance(message := receive(late), EngineReady):
        pass
    assert message == READY


def test_requests_of_a_silent_client_are_aborted_and_it_is_told_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, directory: Path, connect: Callable[[], zmq.Socket[bytes]]
) -> None:
    monkeypatch.setattr(mailbox_module, "CLIENT_SILENCE_S", 0.1)
    monkeypatch.setattr(mailbox_module, "POLL_MS", 20)
    mailbox = Mailbox(directory, os.getppid())
    socket, request = connect(), make_request()
    socket.send(transport.encode_to_engine(request))
    assert mailbox.take(wait=True) == [request]
    assert mailbox.take(wait=True) == [AbortRequests([request.request_id])]
    mailbox.post(StepDeltas([TokenDelta(request.request_id, [], "abort")]))
    ended = receive(socket)
    assert isinstance(ended, StepDeltas)
    assert ended.deltas[0].finish_reason == "abort"
    mailbox.close()


def test_a_failed_io_thread_ends_the_main_loop(directory: Path) -> None:
    mailbox = Mailbox(directory / "missing", os.getppid())
    with pytest.raises(RuntimeError, match="IO thread"):
        mailbox.take(wait=True)
    mailbox.close()


def test_shut_down_wakes_a_sleeping_main_thread(mailbox: Mailbox) -> None:
    mailbox.shut_down()
    assert mailbox.take(wait=True) == [Shutdown()]
