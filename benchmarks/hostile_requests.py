"""Ten thousand malformed or hostile requests: none is to get a 5xx, and the server is to stay well.

    python -m benchmarks.hostile_requests --url http://127.0.0.1:8000 --model smollm2-135m-instruct
    python -m benchmarks.hostile_requests --url ... --model ... --token dlp_... --requests 500

The kinds are those of hostile_cases.py, in turn. `--concurrency` connections are open at a time;
beside them `--slow` ones (slow loris) send a byte of a head each second until they are closed. An
answer may be any status below 500; a connection may also be closed without one, if what came was
no HTTP. Every 500 requests /health must be well within five seconds. In the end nothing may run or
wait, and all cache blocks must be free. Prints statuses by kind and writes
results/hostile_requests.json beside this script (`--out`). Exit status 1 if anything was not as it
should be.

It stops by itself: a connection is given up after 20 s, which counts as a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from benchmarks.hostile_cases import KINDS, Case, Target, cases

RESULTS = Path(__file__).parent / "results"
GIVE_UP_S = 20.0
CHECK_EVERY = 500


class Run:
    """One run against one server."""

    def __init__(self, url: str, target: Target, concurrency: int) -> None:
        parts = urlsplit(url)
        self._url = url
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or 80
        self._target = target
        self._room = asyncio.Semaphore(concurrency)
        self.statuses: dict[str, Counter[str]] = defaultdict(Counter)
        self.failures: list[str] = []
        self.slow_ended = Counter[str]()

    async def all(self, todo: Iterator[Case], slow: int) -> None:
        loris = [asyncio.create_task(self._slow_loris()) for _ in range(slow)]
        running: set[asyncio.Task[None]] = set()
        for number, case in enumerate(todo):
            await self._room.acquire()
            task = asyncio.create_task(self._one(number, case))
            running.add(task)
            task.add_done_callback(running.discard)
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                await self._check_health(number)
        await asyncio.gather(*running)
        await asyncio.gather(*loris)

    async def _one(self, number: int, case: Case) -> None:
        try:
            async with asyncio.timeout(GIVE_UP_S):
                status = await self._exchange(case)
        except TimeoutError:
            status = "no answer"
        finally:
            self._room.release()
        self.statuses[case.kind][status] += 1
        if status.startswith("5") or status == "no answer":
            sent = b"".join(case.pieces)[:300]
            self.failures.append(f"request {number}, {case.kind}: {status}: {sent!r}")

    async def _exchange(self, case: Case) -> str:
        """The first answer's status, or how the connection ended."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            for piece in case.pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(case.pause_s)
            if case.leaves:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.05)
                return "left"
            line = await reader.readline()
            while await reader.read(65536):
                pass
        except (ConnectionError, OSError):
            return "closed"
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, OSError):
                await writer.wait_closed()
        words = line.split()
        return words[1].decode() if len(words) > 1 else "closed"

    async def _slow_loris(self) -> None:
        """A byte of a head each second, until the server has had enough."""
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(self._host, self._port)
        ended = asyncio.create_task(reader.read(1000))
        for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 60:
            await asyncio.wait((ended,), timeout=1.0)
            if ended.done():
                break
            writer.write(bytes([byte]))
        else:
            self.failures.append("a slow loris was let in for more than a minute")
        ended.cancel()
        writer.close()
        self.slow_ended[f"{time.monotonic() - began:.0f} s"] += 1

    async def _check_health(self, number: int) -> None:
        try:
            async with httpx.AsyncClient(timeout=5.0) as client:
                status = (await client.get(f"{self._url}/health")).status_code
        except httpx.HTTPError as error:
            status, error_name = 0, type(error).__name__
            self.failures.append(f"after request {number}: /health: {error_name}")
        if status not in (0, 200):
            self.failures.append(f"after request {number}: /health: {status}")

    async def check_idle(self) -> None:
        """Nothing is left behind in the engine."""
        async with httpx.AsyncClient(timeout=5.0) as client:
            for _ in range(100):
                stats = (await client.get(f"{self._url}/health")).json()["stats"]
                idle = stats["running"] == stats["waiting"] == 0
                if idle and stats["kv_blocks_free"] == stats["kv_blocks_total"]:
                    return
                await asyncio.sleep(0.1)
        self.failures.append(f"ten seconds after the end: {stats}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True, help="an endpoint's name")
    parser.add_argument("--token", default="", help="of an administrator, if one is asked for")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--slow", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "hostile_requests.json")
    arguments = parser.parse_args()
    target = Target(arguments.model, arguments.token)
    run = Run(arguments.url, target, arguments.concurrency)
    began = time.monotonic()

    async def work() -> None:
        await run.all(cases(target, arguments.seed, arguments.requests), arguments.slow)
        await run.check_idle()

    asyncio.run(work())
    seconds = time.monotonic() - began
    for name in sorted(run.statuses):
        counts = ", ".join(f"{n} x {status}" for status, n in sorted(run.statuses[name].items()))
        print(f"{name:24} {counts}")
    print(f"{arguments.requests} requests of {len(KINDS)} kinds in {seconds:.0f} s")
    print(f"{arguments.slow} slow lorises ended after: {dict(run.slow_ended)}")
    for failure in run.failures:
        print("FAILED", failure)
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "requests": arguments.requests,
        "seed": arguments.seed,
        "with_token": bool(arguments.token),
        "seconds": round(seconds, 1),
        "statuses": {name: dict(run.statuses[name]) for name in sorted(run.statuses)},
        "slow_lorises_ended_after": dict(run.slow_ended),
        "failures": run.failures,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(bool(run.failures))


if __name__ == "__main__":
    main()
