"""A client of an engine process on a bare socket."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import zmq

from dropless.engine import transport
from dropless.engine.messages import EngineStats, FromEngine, Ping, Pong, StepDeltas, ToEngine

from .traffic import make_request


class BareClient:
    """One DEALER socket with blocking calls."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], directory: Path) -> None:
        self.socket = transport.connect_client(context, directory)

    def send(self, message: ToEngine) -> None:
        self.socket.send(transport.encode_to_engine(message))

    def wait_for(self, wanted: Callable[[FromEngine], bool]) -> FromEngine:
        """Reads on until a message is the wanted one."""
        deadline = time.monotonic() + 30
        while self.socket.poll(1000 * (deadline - time.monotonic())):
            message = transport.decode_from_engine(self.socket.recv())
            if wanted(message):
                return message
        raise TimeoutError("the engine did not send what was expected")

    def stats(self) -> EngineStats:
        self.send(Ping(1))
        pong = self.wait_for(lambda message: isinstance(message, Pong))
        assert isinstance(pong, Pong)
        return pong.stats

    def assert_serving(self) -> None:
        request = make_request(3)
        self.send(request)
        self.wait_for(ends(request.request_id))


def ends(request_id: str) -> Callable[[FromEngine], bool]:
    def wanted(message: FromEngine) -> bool:
        return isinstance(message, StepDeltas) and any(
            delta.request_id == request_id and delta.finish_reason for delta in message.deltas
        )

    return wanted
