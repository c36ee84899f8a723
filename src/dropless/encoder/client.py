"""The encoder process as the HTTP process sees it: started when needed, restarted when it dies."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from msgspec.structs import replace

from dropless.checkpoints.resolve import resolve
from dropless.encoder.entities import NAMES
from dropless.encoder.messages import (
    Embed,
    Embedded,
    Failed,
    FromEncoder,
    Judge,
    Needs,
    Prepare,
    Prepared,
    ToEncoder,
    Verdict,
)
from dropless.encoder.supervisor import EncoderProcess
from dropless.errors import DroplessError, EncoderUnavailableError

logger = logging.getLogger(__name__)

State = Literal["off", "starting", "ready", "failed"]

EMBEDDING_MODEL = "all-minilm-l6-v2"  # of the catalogue
# One core in four, at most so many: more do not make short texts faster, and beside an engine on
# the same cores threads wait for each other longer than they compute.
MAX_THREADS = 4
WAIT_S = 30.0  # how long a request waits for a process that starts or loads more
FAILED_S = 30.0  # how long a failed start is taken for an answer, before it is tried again
MAX_RESTARTS = 5  # within RESTART_WINDOW_S; more are a failure
RESTART_WINDOW_S = 600.0
FIRST_PAUSE_S = 0.1  # before a restart, doubled for each one in the window
IN_FLIGHT = 8  # messages that one caller has on the way, so that others get their turn

R = TypeVar("R", Prepared, Embedded, Verdict)


class EncoderClient:
    """Costs nothing until something is asked of it: no process, no model. All methods belong to
    one event loop."""

    def __init__(self, *, threads: int | None = None) -> None:
        self.state: State = "off"
        self.detail = "not started"  # what it does, or why it failed
        self.restarts = 0
        self._threads = threads or max(1, min(MAX_THREADS, (os.cpu_count() or 1) // 4))
        self._model_folder: Path | None = None
        self._fetching: asyncio.Task[Path] | None = None
        self._needs = Needs()  # of all who ever asked
        self._loaded = Needs()  # by the process as it is
        self._process: EncoderProcess | None = None
        self._ready = asyncio.Event()  # the process has loaded, or it failed
        self._life: asyncio.Task[None] | None = None
        self._restart_times: deque[float] = deque()
        self._failed_at: float | None = None  # time.monotonic()
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[FromEncoder]] = {}

    @property
    def pid(self) -> int | None:
        """The process' id, None while there is none."""
        return None if self._process is None else self._process.pid

    def health(self) -> dict[str, str | int]:
        """What /health says of it."""
        return {"state": self.state, "detail": self.detail, "restarts": self.restarts}

    async def prepare(self, needs: Needs) -> None:
        """Have a process that has loaded what is needed. Returns when it has.

        Raises:
            DroplessError: the model cannot be fetched or read, or the process does not live.
        """
        if self.state == "ready" and self._loaded.cover(needs):
            return
        if self._failed_at is not None and time.monotonic() < self._failed_at + FAILED_S:
            raise self._unavailable(self.detail)
        self._needs = self._needs.also(needs)
        if needs.embeddings:
            await self._fetch()
        if self._life is None or self._life.done():
            self._failed_at = None
            self._ready.clear()
            self.state, self.detail = "starting", "starting the encoder process"
            self._life = asyncio.create_task(self._live())
        await self._ready.wait()
        if self._failed_at is not None:
            raise self._unavailable(self.detail)
        if not self._loaded.cover(needs):
            await self._load()

    async def judge(self, pieces: Sequence[Judge]) -> list[Verdict]:
        """A verdict for each piece; the pieces' own numbers do not matter.

        Raises:
            EncoderUnavailableError: no process can judge them, or it died on the way.
        """
        return await self._ask(pieces, _needs_of(pieces), Verdict)

    async def embed(self, texts: Sequence[list[int]]) -> list[bytes]:
        """The vector of each text, given as token ids: little-endian float32, of length 1.

        Raises:
            EncoderUnavailableError: no process can encode them, or it died on the way.
        """
        asked = [Embed(0, token_ids) for token_ids in texts]
        return [r.vector for r in await self._ask(asked, Needs(embeddings=True), Embedded)]

    async def stop(self) -> None:
        """Ends the process. Safe to call at any time."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
        self.state, self.detail = "off", "stopped"

    async def _ask(self, messages: Sequence[Embed | Judge], needs: Needs, kind: type[R]) -> list[R]:
        try:
            async with asyncio.timeout(WAIT_S):
                await self.prepare(needs)
        except TimeoutError:
            raise self._unavailable(f"it is {self.state}: {self.detail}") from None
        except EncoderUnavailableError:
            raise
        except DroplessError as error:
            raise self._unavailable(str(error)) from error
        room = asyncio.Semaphore(IN_FLIGHT)

        async def one(message: Embed | Judge) -> R:
            async with room:
                return await self._send(replace(message, number=next(self._numbers)), kind)

        tasks = [asyncio.create_task(one(message)) for message in messages]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _unavailable(self, why: str) -> EncoderUnavailableError:
        wait_s = FAILED_S if self.state == "failed" else 2.0
        return EncoderUnavailableError(
            f"nothing can be judged or embedded now: {why}", retry_after_s=wait_s
        )

    async def _send(self, message: ToEncoder, kind: type[R]) -> R:
        """One message and its reply. Raises the error that the process had, or died of."""
        if self._process is None:
            raise self._unavailable(self.detail)
        answer = self._answers[message.number] = asyncio.get_running_loop().create_future()
        try:
            self._process.send(message)
            reply = await answer
        finally:
            del self._answers[message.number]
        if isinstance(reply, Failed):
            raise EncoderUnavailableError(reply.message, retry_after_s=1.0)
        assert isinstance(reply, kind)
        return reply

    def _receive(self, reply: FromEncoder) -> None:
        answer = self._answers.get(reply.number)
        if answer is not None and not answer.done():
            answer.set_result(reply)

    async def _fetch(self) -> None:
        """The model's files, once for all who wait for them."""
        if self._model_folder is not None:
            return
        if self._fetching is None or self._fetching.done():
            self.detail = f"fetching {EMBEDDING_MODEL}"
            self._fetching = asyncio.create_task(asyncio.to_thread(resolve, EMBEDDING_MODEL))
        self._model_folder = await asyncio.shield(self._fetching)

    async def _load(self) -> None:
        """Have the process load all that was ever asked for."""
        needs = self._needs
        folder = None if self._model_folder is None else str(self._model_folder)
        await self._send(Prepare(next(self._numbers), needs, folder), Prepared)
        self._loaded = self._loaded.also(needs)

    async def _live(self) -> None:
        """Keeps a process alive, until it dies too often or cannot load what it is for."""
        try:
            while True:
                await self._one_life()
                await asyncio.sleep(FIRST_PAUSE_S * 2.0 ** (len(self._restart_times) - 1))
        except (DroplessError, OSError) as error:
            self.state, self.detail = "failed", str(error)
            self._failed_at = time.monotonic()
            logger.error("the encoder process failed: %s", error)
        finally:
            self._ready.set()

    async def _one_life(self) -> None:
        """One process from start to death, after which another may be started.

        Raises:
            DroplessError: it cannot load what it is for, or has died too often.
            OSError: it cannot be started.
        """
        process = self._process = await EncoderProcess.start(self._threads, self._receive)
        process.died.add_done_callback(self._died)
        try:
            await self._become_ready(process)
            await asyncio.wait({process.died})
        finally:
            await process.kill()
        self._note_restart(process.died.result())

    async def _become_ready(self, process: EncoderProcess) -> None:
        try:
            await self._load()
        except EncoderUnavailableError:
            if process.died.done():
                return
            raise
        self.state, self.detail = "ready", "ready"
        self._ready.set()

    def _died(self, died: asyncio.Task[str]) -> None:
        """Who waits for an answer gets an error; who comes now waits for the next process."""
        if died.cancelled():  # with the event loop
            return
        self._process, self._loaded = None, Needs()
        self._ready.clear()
        self.state, self.detail = "starting", died.result()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._unavailable(self.detail))

    def _note_restart(self, why: str) -> None:
        now = time.monotonic()
        while self._restart_times and self._restart_times[0] < now - RESTART_WINDOW_S:
            self._restart_times.popleft()
        if len(self._restart_times) == MAX_RESTARTS:
            self._restart_times.clear()
            raise EncoderUnavailableError(
                f"{why}; given up after {MAX_RESTARTS} restarts within {RESTART_WINDOW_S:.0f} s"
            )
        self._restart_times.append(now)
        self.restarts += 1
        logger.error("%s; restarting (%d)", why, self.restarts)


def _needs_of(pieces: Sequence[Judge]) -> Needs:
    return Needs(
        embeddings=any(piece.safety or piece.topics for piece in pieces),
        injection=any(piece.injection for piece in pieces),
        pii=any(piece.entities for piece in pieces),
        names=any(not NAMES.isdisjoint(piece.entities) for piece in pieces),
    )
