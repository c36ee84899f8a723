"""The engine as the HTTP process sees it: requests in, deltas out, restarts handled."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Literal

from dropless.engine import transport
from dropless.engine.config import EngineConfig
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
    StepDeltas,
    TokenDelta,
)
from dropless.engine.supervisor import EngineProcess
from dropless.errors import DroplessError, EngineDeadError, EngineError, InvalidRequestError

logger = logging.getLogger(__name__)

State = Literal["starting", "serving", "restarting", "failed", "stopped"]

DEFAULT_BUILDER = "dropless.engine.build:build_engine"
STEP_STALL_S = 30.0  # a step that runs longer than this makes the engine unhealthy


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """At most `max_restarts` within `window_s`, each after twice the pause of the one before
    (`first_pause_s`, doubled per restart in the window, at most `max_pause_s`)."""

    max_restarts: int = 5
    window_s: float = 600.0
    first_pause_s: float = 0.1
    max_pause_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Health:
    """`ok` only if the engine answered in time and no step has been running too long. `stats` are
    the latest heard, None before the first; `restarts` counts since `start`."""

    ok: bool
    state: State
    detail: str
    stats: EngineStats | None
    restarts: int


class AsyncEngineClient:
    """Starts the engine process, feeds it and keeps it alive. All methods belong to one event loop.

    `builder` names the `module:function` that makes the engine inside its process.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        builder: str = DEFAULT_BUILDER,
        restart_policy: RestartPolicy | None = None,
    ) -> None:
        self.ready: EngineReady | None = None
        self.state: State = "stopped"
        self.restarts = 0
        self._config = config
        self._builder = builder
        self._policy = restart_policy or RestartPolicy()
        self._restart_times: deque[float] = deque()
        self._detail = "not started"  # what health says while not serving
        self._process: EngineProcess | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._launched: asyncio.Future[EngineReady] | None = None
        self._on_progress: Callable[[LoadProgress], None] | None = None
        self._streams: dict[str, asyncio.Queue[TokenDelta | DroplessError]] = {}
        self._aborting: set[str] = set()  # nobody listens; the engine's last delta is to come
        self._asked: dict[int, asyncio.Future[Pong | ExpertCounts]] = {}
        self._nonces = itertools.count(1)
        self._stats: EngineStats | None = None

    @property
    def pid(self) -> int | None:
        """The engine process' id, None while there is none."""
        alive = self._process is not None and not self._process.died.done()
        return self._process.pid if self._process is not None and alive else None

    @property
    def detail(self) -> str:
        """What the state means just now, in words."""
        return self._detail

    @property
    def stats(self) -> EngineStats | None:
        """The latest that the engine said of itself, a second old at most while it serves."""
        return self._stats

    async def start(self, on_progress: Callable[[LoadProgress], None] | None = None) -> EngineReady:
        """Starts the engine process and waits until it serves.

        Raises:
            DroplessError: what the engine process failed with while loading, same class.
        """
        if self.state not in ("stopped", "failed"):
            raise EngineError(f"the engine is {self.state} already; stop it before starting again")
        self.state, self._detail = "starting", "starting the engine process"
        self.restarts = 0
        self._restart_times.clear()
        self._on_progress = on_progress
        try:
            ready = await self._launch()
        except BaseException as error:
            await self.stop()
            if isinstance(error, DroplessError):
                self.state, self._detail = "failed", str(error)
            raise
        self._supervision = asyncio.create_task(self._supervise())
        return ready

    async def stop(self) -> None:
        """Ends the engine process and every request in flight. Safe to call at any time."""
        graceful = self.state == "serving"
        self.state, self._detail = "stopped", "stopped"
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.wait({self._supervision})
            self._supervision = None
        self._end_streams("the engine was stopped", retry_after_s=None)
        if self._process is not None:
            await self._process.stop(graceful=graceful)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenDelta, None]:
        """Deltas of one request as they come; the one with a `finish_reason` is the last. Those
        that arrived while the caller was busy come as one.

        Closing or cancelling the iterator aborts the request in the engine at once.

        Raises:
            InvalidRequestError: the engine refused it (or a subclass, as the engine raised it).
            EngineOverloadedError: the waiting queue is full.
            EngineDeadError: the engine is not serving, or died while it worked on the request.
            OutOfMemoryError: there was not memory enough for a step of it.
            EngineError: the engine failed on this request alone.
        """
        stream = self._open(request)
        try:
            while True:
                delta = _joined(await stream.get(), stream)
                if isinstance(delta, DroplessError):
                    raise delta
                if delta.finish_reason == "error":
                    raise transport.to_error(delta)
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            if self._streams.pop(request.request_id, None) is not None:
                self._aborting.add(request.request_id)
                await self.abort([request.request_id])

    async def abort(self, request_ids: list[str]) -> None:
        """Ends these requests within one step; their last delta says "abort"."""
        if self._process is not None and self.state == "serving":
            self._process.send(AbortRequests(request_ids))

    async def health(self, timeout_s: float = 1.0) -> Health:
        """Asks the engine itself; never takes longer than `timeout_s`."""
        if self._process is None or self.state != "serving":
            return self._health(False, self._detail)
        answer = await self._ask(self._process, Ping(next(self._nonces)), timeout_s)
        if self._process.died.done():
            return self._health(False, self._detail)
        if not isinstance(answer, Pong):
            return self._health(False, f"the engine did not answer within {timeout_s:g} s")
        running_s = answer.step_running_s
        if running_s > STEP_STALL_S:
            return self._health(False, f"a step has been running for {running_s:.0f} s")
        return self._health(True, "serving")

    async def expert_counts(self, timeout_s: float = 1.0) -> list[list[int]] | None:
        """How many (token, choice) pairs went to each expert, by layer, since the engine process
        started: of one step a second. Empty for a dense model; None without an answer in time."""
        if self._process is None or self.state != "serving":
            return None
        request = ExpertLoadRequest(next(self._nonces))
        answer = await self._ask(self._process, request, timeout_s)
        return answer.counts if isinstance(answer, ExpertCounts) else None

    async def _ask(
        self, process: EngineProcess, question: Ping | ExpertLoadRequest, timeout_s: float
    ) -> Pong | ExpertCounts | None:
        """What the engine answers; None if it dies first, or takes longer."""
        answer = self._asked[question.nonce] = asyncio.get_running_loop().create_future()
        process.send(question)
        try:
            await _first_of(answer, process.died, timeout_s=timeout_s)
        finally:
            del self._asked[question.nonce]
        return answer.result() if answer.done() else None

    def _health(self, ok: bool, detail: str) -> Health:
        return Health(ok, self.state, detail, self._stats, self.restarts)

    def _open(self, request: EngineRequest) -> asyncio.Queue[TokenDelta | DroplessError]:
        """Sends the request and returns where its deltas will arrive."""
        if self._process is None or self.state != "serving":
            raise EngineDeadError(
                f"the engine is {self.state}: {self._detail}", retry_after_s=self._retry_after_s()
            )
        if request.request_id in self._streams or request.request_id in self._aborting:
            raise InvalidRequestError(
                f"request_id {request.request_id!r} is in use; give every request its own",
                param="request_id",
            )
        self._process.send(request)
        stream = self._streams[request.request_id] = asyncio.Queue()
        return stream

    def _retry_after_s(self) -> float | None:
        """When the engine may be back, judged by how long it took to load."""
        if self.state not in ("starting", "restarting"):
            return None
        return 1.0 + (self.ready.load_seconds if self.ready is not None else 0.0)

    async def _launch(self) -> EngineReady:
        """One process from start to ready. Raises the error that it failed with."""
        self._launched = asyncio.get_running_loop().create_future()
        try:
            self._process = EngineProcess(self._config, self._builder, self._receive)
        except OSError as error:
            raise EngineError(f"cannot start the engine process: {error}") from error
        await _first_of(self._launched, self._process.died)
        if not self._launched.done():
            raise self._process.died.result()
        self.ready = self._launched.result()
        self.state, self._detail = "serving", "serving"
        return self.ready

    async def _supervise(self) -> None:
        """Restarts the engine whenever it dies, until the policy says that it is no use."""
        self._on_progress = None
        while self._process is not None:
            await _first_of(self._process.died)
            reason = str(self._process.died.result())
            while self._begin_restart(reason):
                await asyncio.sleep(self._pause_s())
                try:
                    await self._launch()
                    break
                except DroplessError as error:
                    reason = str(error)
            else:
                return

    def _begin_restart(self, reason: str) -> bool:
        """Takes note of a death. False, and the state is "failed", if there were too many."""
        now = time.monotonic()
        while self._restart_times and self._restart_times[0] < now - self._policy.window_s:
            self._restart_times.popleft()
        again = len(self._restart_times) < self._policy.max_restarts
        if again:
            self._restart_times.append(now)
            self.restarts += 1
            self.state, self._detail = "restarting", reason
            logger.error("%s; restarting (%d)", reason, self.restarts)
        else:
            self.state = "failed"
            self._detail = (
                f"{reason}; given up after {len(self._restart_times)} restarts within "
                f"{self._policy.window_s:g} s"
            )
            logger.error(self._detail)
        self._end_streams(
            f"the engine stopped during this request: {reason}", retry_after_s=self._retry_after_s()
        )
        return again

    def _pause_s(self) -> float:
        doublings = len(self._restart_times) - 1
        return min(self._policy.first_pause_s * 2.0**doublings, self._policy.max_pause_s)

    def _end_streams(self, reason: str, *, retry_after_s: float | None) -> None:
        for stream in self._streams.values():
            stream.put_nowait(EngineDeadError(reason, retry_after_s=retry_after_s))
        self._streams.clear()
        self._aborting.clear()

    def _receive(self, message: FromEngine) -> None:
        if isinstance(message, StepDeltas):
            for delta in message.deltas:
                self._route(delta.request_id, delta, last=delta.finish_reason is not None)
        elif isinstance(message, RequestRefused):
            self._route(message.request_id, transport.to_error(message), last=True)
        elif isinstance(message, Pong | ExpertCounts):
            if isinstance(message, Pong):
                self._stats = message.stats
            waiting = self._asked.get(message.nonce)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        elif isinstance(message, LoadProgress):
            self._report(message)
        elif (
            isinstance(message, EngineReady)
            and self._launched is not None
            and not self._launched.done()
        ):
            self._launched.set_result(message)

    def _route(self, request_id: str, item: TokenDelta | DroplessError, *, last: bool) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put_nowait(item)
        if last:
            self._streams.pop(request_id, None)
            self._aborting.discard(request_id)

    def _report(self, progress: LoadProgress) -> None:
        if self.state == "starting":
            self._detail = f"{progress.stage} ({progress.fraction:.0%})"
        if self._on_progress is not None:
            self._on_progress(progress)


async def _first_of(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    """Waits until one of them is done, or the time is over; cancels none."""
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def _joined(
    first: TokenDelta | DroplessError, stream: asyncio.Queue[TokenDelta | DroplessError]
) -> TokenDelta | DroplessError:
    """`first` with all that has arrived after it; an error makes the rest worthless."""
    while isinstance(first, TokenDelta) and not stream.empty():
        later = stream.get_nowait()
        if isinstance(later, DroplessError):
            return later
        first.extend(later)
    return first
