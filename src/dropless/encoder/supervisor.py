"""One life of the encoder process, as its parent sees it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec

from dropless.encoder.messages import HEADER, FromEncoder, ToEncoder

logger = logging.getLogger(__name__)

# Batches take a fraction of a second, and loading some seconds. A process that owes an answer and
# is silent for so many ticks is hung, and is killed. Counted, not timed: a suspended parent must
# not blame it.
HANG_TICKS = 60
TICK_S = 1.0
OPENMP_SPINS = 20_000  # some 50 us; threads that spin longer take time from the engine's

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FromEncoder)


class EncoderProcess:
    """`on_reply` gets everything that the process sends. `died` becomes why it ended, after it is
    reaped; nobody may await it directly, for that could cancel it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_reply: Callable[[FromEncoder], None],
    ) -> None:
        """Call `start` instead."""
        self.pid = process.pid
        self._process = process
        self._writer = writer
        self._on_reply = on_reply
        self._owed = 0  # messages without an answer
        self.died = asyncio.create_task(self._until_death(reader))

    @classmethod
    async def start(cls, threads: int, on_reply: Callable[[FromEncoder], None]) -> EncoderProcess:
        """Raises OSError: the system has no room for a process."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", "dropless.encoder.process"]
            command += ["--socket", str(theirs.fileno()), "--threads", str(threads)]
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    env={"GOMP_SPINCOUNT": str(OPENMP_SPINS), **os.environ},
                    pass_fds=(theirs.fileno(),),
                    process_group=0,  # Ctrl-C reaches the parent only
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, *await asyncio.open_connection(sock=ours), on_reply)

    def send(self, message: ToEncoder) -> None:
        """Queues a message; never blocks. To a dead process it goes nowhere."""
        frame = _encoder.encode(message)
        self._owed += 1
        self._writer.write(HEADER.pack(len(frame)) + frame)

    async def kill(self) -> None:
        """Ends the process and waits until it is reaped."""
        self._process.kill()
        await asyncio.wait({self.died})

    async def _until_death(self, reader: asyncio.StreamReader) -> str:
        verdict = await self._listen(reader)
        self._writer.close()
        self._process.kill()
        code = await asyncio.to_thread(self._process.wait)
        if verdict is not None:
            return verdict
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"the encoder process {how}"

    async def _listen(self, reader: asyncio.StreamReader) -> str | None:
        """Hands over replies until the process closes its end. Returns why it must be killed if
        it does not."""
        silent = 0  # ticks
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    header = await reader.readexactly(HEADER.size)
                [size] = HEADER.unpack(header)
                reply = _decoder.decode(await reader.readexactly(size))
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
            except TimeoutError:
                silent = silent + 1 if self._owed else 0
                if silent >= HANG_TICKS:
                    return f"the encoder process said nothing for {silent} s and was killed"
                continue
            silent = 0
            self._owed -= 1
            self._on_reply(reply)
