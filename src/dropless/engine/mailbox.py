"""The engine process' door: a thread that owns the socket, so that clients are heard and answered
while the main thread is inside a step."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from dropless.engine import transport
from dropless.engine.grammar_thread import Compiled
from dropless.engine.messages import (
    AbortRequests,
    EngineReady,
    EngineRequest,
    EngineStats,
    ExpertCounts,
    ExpertLoadRequest,
    FromEngine,
    LoadProgress,
    Ping,
    Pong,
    RequestRefused,
    Shutdown,
    StepDeltas,
    ToEngine,
)
from dropless.errors import InvalidRequestError

logger = logging.getLogger(__name__)

POLL_MS = 1000
RECEIVE_BATCH = 256  # messages taken in before answers get their turn
# A client pings every second; one that is silent this long is stopped or stuck, and its requests
# are aborted so that they do not hold cache blocks and fill the socket's buffer.
CLIENT_SILENCE_S = 30.0

Work = EngineRequest | Compiled | AbortRequests | Shutdown


@dataclass(slots=True)
class _Client:
    last_seen: float  # time.monotonic()
    live: set[str] = field(default_factory=set)  # accepted requests whose last delta is not sent
    silent: bool = False


class Mailbox:
    """Between the clients and the main thread.

    The main thread calls `take`, `post`, `step_begins`, `step_ends` and `close`; all else runs on
    the IO thread. Every request that is taken gets either one RequestRefused or one delta with a
    finish reason, as long as the main thread posts one for it.
    """

    def __init__(self, directory: Path, parent_pid: int) -> None:
        self._directory = directory
        self._parent_pid = parent_pid
        self._inbox: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._outbox: deque[FromEngine] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._error: Exception | None = None
        self._stats = EngineStats()
        self._step_started: float | None = None
        self._greeting: LoadProgress | EngineReady | None = None  # what a new client must know
        self._clients: dict[bytes, _Client] = {}
        self._owners: dict[str, bytes] = {}
        self.expert_counts: Callable[[], list[list[int]]] = list  # called on the IO thread
        self._thread = threading.Thread(target=self._run, name="engine-io", daemon=True)
        self._thread.start()

    # Main thread

    def take(self, *, wait: bool) -> list[Work]:
        """Everything that has arrived. With `wait`, sleeps until there is something.

        Raises:
            RuntimeError: the IO thread has failed; nobody can be served any more.
        """
        messages = [self._inbox.get()] if wait else []
        while not self._inbox.empty():
            messages.append(self._inbox.get())
        if self._error is not None:
            raise RuntimeError("the engine's IO thread failed") from self._error
        return messages

    def shut_down(self) -> None:
        """As if a client had sent Shutdown. May be called from a signal handler."""
        self._inbox.put(Shutdown())

    def bring(self, compiled: Compiled) -> None:
        """To the main thread, as if it had arrived. May be called from any thread."""
        self._inbox.put(compiled)

    def post(self, message: FromEngine) -> None:
        """Hands a message to the IO thread: deltas and refusals go to the request's client, the
        rest to every client."""
        self._outbox.append(message)
        os.eventfd_write(self._wake, 1)

    def step_begins(self, stats: EngineStats) -> None:
        self._stats = stats
        self._step_started = time.monotonic()

    def step_ends(self, stats: EngineStats) -> None:
        self._step_started = None
        self._stats = stats

    def close(self) -> None:
        """Sends what is posted, then closes the socket."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    # IO thread

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            self._socket = transport.bind_engine(context, self._directory)
            self._loop()
            self._socket.close()
        except Exception as error:
            logger.exception("the engine's IO thread failed")
            self._error = error
            self._inbox.put(Shutdown())
        finally:
            context.destroy(linger=transport.LINGER_MS)

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while not self._closing or self._outbox:
            ready = dict(poller.poll(POLL_MS))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            while self._outbox:
                self._deliver(self._outbox.popleft())
            if self._socket in ready:
                self._receive()
            self._give_up_silent_clients()
            if os.getppid() != self._parent_pid:
                os.killpg(0, signal.SIGKILL)

    def _receive(self) -> None:
        for _ in range(RECEIVE_BATCH):
            try:
                identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                [frame] = frames
                message = transport.decode_to_engine(frame)
            except Exception as error:  # nothing that a client sends may stop this thread
                logger.warning("ignored a malformed message: %s: %s", type(error).__name__, error)
                continue
            self._accept(identity, message)

    def _accept(self, identity: bytes, message: ToEngine) -> None:
        client = self._clients.get(identity)
        if client is None:
            client = self._clients[identity] = _Client(time.monotonic())
            if self._greeting is not None:
                self._send(identity, self._greeting)
        client.last_seen = time.monotonic()
        client.silent = False
        if isinstance(message, Ping):
            self._send(identity, self._pong(message))
        elif isinstance(message, ExpertLoadRequest):
            self._send(identity, ExpertCounts(message.nonce, self.expert_counts()))
        elif isinstance(message, AbortRequests):
            mine = [i for i in message.request_ids if i in client.live]
            self._inbox.put(AbortRequests(mine))
        elif isinstance(message, EngineRequest):
            self._admit(identity, client, message)
        else:
            self._inbox.put(message)

    def _admit(self, identity: bytes, client: _Client, request: EngineRequest) -> None:
        if request.request_id in self._owners:
            error = InvalidRequestError(
                f"request_id {request.request_id!r} is in use; give every request its own",
                param="request_id",
                code="duplicate_request_id",
            )
            self._send(identity, transport.refusal(request.request_id, error))
            return
        self._owners[request.request_id] = identity
        client.live.add(request.request_id)
        self._inbox.put(request)

    def _pong(self, ping: Ping) -> Pong:
        started = self._step_started
        running_s = 0.0 if started is None else time.monotonic() - started
        return Pong(nonce=ping.nonce, step_running_s=running_s, stats=self._stats)

    def _deliver(self, message: FromEngine) -> None:
        if isinstance(message, StepDeltas):
            by_client = defaultdict(list)
            for delta in message.deltas:
                identity = self._owners.get(delta.request_id)
                if identity is None:
                    continue  # its client is gone
                by_client[identity].append(delta)
                if delta.finish_reason is not None:
                    self._settle(delta.request_id)
            for identity, deltas in by_client.items():
                self._send(identity, StepDeltas(deltas))
        elif isinstance(message, RequestRefused):
            identity = self._settle(message.request_id)
            if identity is not None:
                self._send(identity, message)
        else:
            if isinstance(message, LoadProgress | EngineReady):
                self._greeting = message
            for identity in list(self._clients):
                self._send(identity, message)

    def _settle(self, request_id: str) -> bytes | None:
        """The request has had its last message: forget it. Returns its client."""
        identity = self._owners.pop(request_id, None)
        if identity is not None:
            self._clients[identity].live.discard(request_id)
        return identity

    def _send(self, identity: bytes, message: FromEngine) -> None:
        try:
            frame = transport.encode_from_engine(message)
            self._socket.send_multipart([identity, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self._forget(identity, f"its connection is closed ({error})")

    def _forget(self, identity: bytes, reason: str) -> None:
        client = self._clients.pop(identity, None)
        if client is None:
            return
        for request_id in client.live:
            del self._owners[request_id]
        self._abort_all(client, reason)

    def _give_up_silent_clients(self) -> None:
        """Aborts what silent clients have running, and forgets those that have nothing. So one
        that was only suspended finds its requests ended when it reads again."""
        deadline = time.monotonic() - CLIENT_SILENCE_S
        for identity, client in list(self._clients.items()):
            if client.last_seen >= deadline:
                continue
            if not client.live:
                del self._clients[identity]
            elif not client.silent:
                client.silent = True
                self._abort_all(client, f"it has been silent for {CLIENT_SILENCE_S:.0f} s")

    def _abort_all(self, client: _Client, reason: str) -> None:
        if client.live:
            logger.warning("aborting %d requests of a client: %s", len(client.live), reason)
            self._inbox.put(AbortRequests(list(client.live)))
