"""What inference tables cost, and that a kill loses nothing.

    python -m benchmarks.inference_tables
    python -m benchmarks.inference_tables --model smollm2-135m-instruct --requests 16 --turns 6
    python -m benchmarks.inference_tables --only kill --kill-rounds 20

- `row`: what the HTTP process spends on a call, alone.
- `writer`: how many rows a second come from the spool into the tables, and how large they are.
- `server`: a real server with two endpoints of one model, one of which logs, gets calls for the one
  and the other in turns of about a second; processor time of each process.
- `kill`: a server under load is killed, again and again; then rows are counted.

Without --model the servers serve the tests' tiny model: a call costs the least there is, so tables
weigh the most. Writes results/inference_tables.json beside this script.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import yaml

from dropless.checkpoints.model_cache import default_cache_dir
from dropless.server.call import Call
from dropless.server.generation import Usage
from dropless.server.identity.principal import Principal
from dropless.server.inference_table import InferenceTables
from dropless.tables.maintenance import compact_all
from dropless.tables.overview import overview
from dropless.tables.session_writer import finish_left_sessions
from dropless.tables.settings import InferenceTableSettings, TablesSettings, UsageTrackingSettings
from dropless.tables.spool_folder import FORMAT, WRITER_REPORT, spooled_bytes
from dropless.tables.sql import TableQueries
from dropless.tables.table_name import USAGE, TableName
from dropless.tables.table_store import TableStore
from dropless.tables.writer_process import WriterReport

RESULTS = Path(__file__).parent / "results" / "inference_tables.json"
TABLE = TableName("main", "default", "bench_payload")
WORDS = ["".join(letters) for letters in itertools.product("bdklmnrst", "aeiou", "gnrst", "aeio")]
CONCURRENCY = 16
START_S = 300.0
_WARM_TURNS = 2


class _Endpoints:
    """Stands for the server's registry, with one endpoint that logs everything."""

    class _Endpoint:
        name = "bench"
        version = 1
        changed = 0.0
        entities = ()

        class settings:  # noqa: N801
            inference_table_config = InferenceTableSettings()
            usage_tracking_config = UsageTrackingSettings(enabled=True)

    def __init__(self) -> None:
        self._endpoint = self._Endpoint()

    def get(self, name: str) -> Any:
        return self._endpoint if name == "bench" else None

    def list(self) -> list[Any]:
        return [self._endpoint]


def text(number: int, words: int) -> str:
    """Words from a vocabulary of 900; always the same for the same number."""
    return " ".join(random.Random(number).choices(WORDS, k=words))


def made_up_call(number: int) -> Call:
    """A chat of usual size: 140 words asked, 120 answered."""
    message = {"role": "user", "content": text(number, 140)}
    request = {"model": "bench", "messages": [message]}
    message = {"role": "assistant", "content": text(-number, 120), "refusal": None}
    call = Call(f"req-{number:032x}", time.time(), "chat", Principal("ada@example.com"), "bench")
    call.request_body = json.dumps(request).encode()
    call.served_entity_id = "0123456789abcdef0123456789abcdef"
    call.status_code = 200
    call.usage = Usage(190, 140, 16)
    call.execution_s = 1.5
    call.response_body = {
        "id": f"chatcmpl-{number:032x}",
        "object": "chat.completion",
        "created": 1795538104,
        "model": "bench",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 190, "completion_tokens": 140, "total_tokens": 330},
    }
    return call


def measure_row(folder: Path, calls: int = 20_000) -> dict[str, float]:
    """Microseconds of processor time a call, in the thread that would serve requests."""
    tables = InferenceTables(TablesSettings(flush_seconds=3600), folder, _Endpoints())  # type: ignore[arg-type]
    made = [made_up_call(i) for i in range(calls)]
    spent: list[float] = []
    blocked: list[float] = []
    schedule = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    for call in made:
        queued = int(schedule.read_text().split()[1])
        before, began = time.thread_time_ns(), time.perf_counter_ns()
        tables.accepted(call)
        tables.ended(call)
        wall, cpu = time.perf_counter_ns() - began, time.thread_time_ns() - before
        queued = int(schedule.read_text().split()[1]) - queued
        spent.append(cpu / 1e3)
        blocked.append(max(0, wall - cpu - queued) / 1e3)
    status = tables.status()
    assert status is not None
    assert status.dropped == 0
    spooled = spooled_bytes(folder / "spool")
    tables.close(timeout_s=600)
    blocked.sort()
    return {
        "calls": calls,
        "cpu_us_a_call": statistics.fmean(spent),
        "cpu_us_a_call_median": statistics.median(spent),
        "blocked_by_the_disk_us_p999": blocked[int(len(blocked) * 0.999)],
        "blocked_by_the_disk_us_max": blocked[-1],
        "spool_bytes_a_call": spooled / calls,
    }


def measure_writer(folder: Path, calls: int = 20_000) -> dict[str, float]:
    """From the spool of a killed server into both tables; in this process, at its own priority."""
    tables = InferenceTables(TablesSettings(flush_seconds=3600), folder, _Endpoints())  # type: ignore[arg-type]
    for i in range(calls):
        call = made_up_call(i)
        tables.accepted(call)
        tables.ended(call)
    [writer] = psutil.Process().children()
    writer.kill()
    tables.close(timeout_s=10)
    store = TableStore(str(folder / "tables"))
    began, cpu = time.perf_counter(), time.process_time()
    rows = finish_left_sessions(folder / "spool", store)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    found = overview(store, TABLE).whole
    compact_all(store, TABLE)
    return {
        "calls": calls,
        "calls_a_second": calls / wall,
        "cpu_us_a_call": cpu / calls * 1e6,
        "rows": rows,
        "payload_bytes_a_row": found.bytes / found.rows,
        "payload_files": found.files,
        "payload_bytes_a_row_compacted": overview(store, TABLE).whole.bytes / found.rows,
        "usage_bytes_a_row": overview(store, USAGE).whole.bytes / calls,
        "peak_memory_mb": psutil.Process().memory_info().rss / 1e6,
    }


class Server:
    """`dropless serve --config` with two endpoints of one model: "bench" logs, "plain" does not."""

    def __init__(self, folder: Path, model: str, engine: dict[str, Any]) -> None:
        entity = {"name": "bench", "model": model, "engine": engine}
        logs = {
            "inference_table_config": {"enabled": True},
            "usage_tracking_config": {"enabled": True},
        }
        config = {
            "server": {"port": 0},
            "data": str(folder / "data"),
            "endpoints": [
                {"name": "plain", "served_entities": [entity]},
                {"name": "bench", "served_entities": [entity], **logs},
            ],
        }
        folder.mkdir(exist_ok=True)
        path = folder / "dropless.yaml"
        path.write_text(yaml.safe_dump(config))
        self.folder = folder
        self._log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dropless.cli.main", "serve", "--config", str(path)],
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        self.url = self._wait()

    def _wait(self) -> str:
        """The address, once it is healthy."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            for connection in psutil.Process(self.process.pid).net_connections("tcp"):
                url = f"http://127.0.0.1:{connection.laddr.port}"
                with contextlib.suppress(httpx.HTTPError):
                    if connection.status == "LISTEN" and httpx.get(f"{url}/health").is_success:
                        return url
            time.sleep(0.1)
        raise TimeoutError((self.folder / "log").read_text())

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far, of all threads of each process."""
        found = {"http": _cpu_s(self.process.pid), "engine": 0.0, "writer": 0.0}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            name = "writer" if "dropless.tables.writer" in child.cmdline() else "engine"
            found[name] += _cpu_s(child.pid)
        return found

    def rows(self) -> int:
        """How many the writer has brought into tables."""
        [report] = (self.folder / "data" / "spool").glob(f"{FORMAT}/*/{WRITER_REPORT}")
        return msgspec.json.decode(report.read_bytes(), type=WriterReport).rows

    def memory_mb(self) -> dict[str, float]:
        processes = {"http": psutil.Process(self.process.pid), "writer": self.writer()}
        return {name: process.memory_info().rss / 1e6 for name, process in processes.items()}

    def writer(self) -> psutil.Process:
        [writer] = [
            child
            for child in psutil.Process(self.process.pid).children()
            if "dropless.tables.writer" in child.cmdline()
        ]
        return writer

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self._log.close()


def _cpu_s(pid: int) -> float:
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


async def ask(
    http: httpx.AsyncClient, url: str, number: int, tokens: int, endpoint: str = "bench"
) -> str | None:
    """One call; its id, or None if the server went away before it began to answer."""
    body = {
        "model": endpoint,
        "prompt": text(number, 30),
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    request_id = None
    with contextlib.suppress(httpx.HTTPError):
        async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
            response.raise_for_status()
            request_id = response.headers["x-request-id"]
            await response.aread()
    return request_id


async def take_turns(server: Server, args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Milliseconds a call of each process, for each turn of requests to one endpoint. The first
    turns are not counted."""
    turns: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    numbers = itertools.count()

    async def client(http: httpx.AsyncClient, left: Iterator[int], endpoint: str) -> None:
        for _ in left:
            assert await ask(http, server.url, next(numbers), args.tokens, endpoint) is not None

    async def turn(http: httpx.AsyncClient, name: str) -> None:
        endpoint = "bench" if name == "on" else "plain"
        left = iter(range(args.requests))
        before, began = server.cpu_s(), time.perf_counter()
        await asyncio.gather(*(client(http, left, endpoint) for _ in range(CONCURRENCY)))
        wall, after = time.perf_counter() - began, server.cpu_s()
        figures = {key: (after[key] - before[key]) / args.requests * 1e3 for key in after}
        turns[name].append({**figures, "wall": wall / args.requests * 1e3})

    async with httpx.AsyncClient(timeout=300) as http:
        for pair in range(args.turns + _WARM_TURNS):
            for name in ("off", "on") if pair % 2 else ("on", "off"):
                await turn(http, name)
    return {name: each[_WARM_TURNS:] for name, each in turns.items()}


def measure_server(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    with model_of(args.model, folder) as (model, engine):
        server = Server(folder / "server", model, engine)
        try:
            writer = server.cpu_s()["writer"]
            turns = asyncio.run(take_turns(server, args))
            while server.rows() < 2 * args.requests * (args.turns + _WARM_TURNS):
                time.sleep(0.2)
            calls = args.requests * (args.turns + _WARM_TURNS)
            writer = (server.cpu_s()["writer"] - writer) / calls * 1e3
            memory = server.memory_mb()
        finally:
            server.stop()
    off, on = (
        [{**turn, "all": turn["http"] + turn["engine"]} for turn in turns[name]]
        for name in ("off", "on")
    )
    means = {key: statistics.fmean(turn[key] for turn in off) for key in ("http", "all", "wall")}
    row = measure_row(folder / "row", calls=5000)["cpu_us_a_call_median"] / 1e3
    return {
        "model": args.model or "tiny",
        "calls_a_turn": args.requests,
        "turns": args.turns,
        "tokens": args.tokens,
        "off_ms_a_call": means,
        "row_ms": row,
        "writer_ms_a_call": writer,
        "row_of_http": row / means["http"],
        "row_and_writer_of_all": (row + writer) / means["all"],
        "on_over_off": {key: difference(off, on, key) for key in means},
        "memory_mb": memory,
    }


def difference(
    off: list[dict[str, float]], on: list[dict[str, float]], key: str
) -> dict[str, float]:
    """How much more the turns with tables took, in shares of those without, pair by pair; without
    the tenth at each end, which is other work of the machine."""
    shares = sorted(b[key] / a[key] - 1 for a, b in zip(off, on, strict=True))
    cut = len(shares) // 10
    kept = shares[cut : len(shares) - cut]
    error = statistics.stdev(kept) / len(kept) ** 0.5 if len(kept) > 1 else 0.0
    return {"mean": statistics.fmean(kept), "standard_error": error}


@contextlib.contextmanager
def model_of(name: str | None, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if name is not None:
        yield name, {}
        return
    from tests.server.tiny_model import TINY_ENGINE, write_tiny_model

    tiny = folder / "tiny"
    tiny.mkdir(exist_ok=True)
    write_tiny_model(tiny)
    yield str(tiny), TINY_ENGINE


def measure_kills(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Kill the HTTP process, and every second time its writer with it, under load; restart on the
    same folders. Then each call that began to be answered must have one row."""
    told: set[str] = set()
    answered = 0
    with model_of(args.model, folder) as (model, engine):
        for number in range(args.kill_rounds):
            server = Server(folder / "killed", model, engine)
            ids = asyncio.run(kill_under_load(server, 1.0 + number % 3, bool(number % 2)))
            told |= ids
            answered += len(ids)
            print(f"kill {number + 1}: {len(ids)} calls")
        server = Server(folder / "killed", model, engine)  # saves what was left
        server.stop()
    store = TableStore(str(folder / "killed" / "data" / "tables"))
    deadline = time.monotonic() + 60
    while spooled_bytes(folder / "killed" / "data" / "spool") and time.monotonic() < deadline:
        time.sleep(0.2)
    left = spooled_bytes(folder / "killed" / "data" / "spool")
    result: dict[str, Any] = {"kills": args.kill_rounds, "calls": answered, "spool_left": left}
    for name in (TABLE, USAGE):
        rows = dict(
            TableQueries(store, [name]).select(
                f'SELECT databricks_request_id, count(*) FROM "{name}" GROUP BY 1'
            )
        )
        result[str(name)] = {
            "rows": sum(rows.values()),
            "missing": len(told - rows.keys()),
            "twice": sum(count > 1 for count in rows.values()),
        }
    [[stopped]] = TableQueries(store, [TABLE]).select(
        "SELECT count(*) FROM bench_payload WHERE status_code = 500"
    )
    result["rows_of_calls_that_were_stopped"] = stopped
    return result


async def kill_under_load(server: Server, after_s: float, with_writer: bool) -> set[str]:
    told: set[str] = set()

    async def client(first: int, http: httpx.AsyncClient) -> None:
        number = first
        while (request_id := await ask(http, server.url, number, 4 + number % 30)) is not None:
            told.add(request_id)
            number += CONCURRENCY

    async def kill() -> None:
        await asyncio.sleep(after_s)
        writer = server.writer()
        server.process.kill()
        if with_writer:
            writer.kill()

    async with httpx.AsyncClient(timeout=30) as http:
        await asyncio.gather(*(client(i, http) for i in range(CONCURRENCY)), kill())
    server.process.wait()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder, file or catalogue name; default: a tiny one")
    parser.add_argument("--requests", type=int, default=64, help="in a turn")
    parser.add_argument("--turns", type=int, default=60, help="with tables, and as many without")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--kill-rounds", type=int, default=6)
    parser.add_argument("--only", choices=("row", "writer", "server", "kill"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["machine"] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    parts = {
        "row": lambda folder: measure_row(folder),
        "writer": lambda folder: measure_writer(folder),
        "server": lambda folder: measure_server(folder, args),
        "kill": lambda folder: measure_kills(folder, args),
    }
    for name, measure in parts.items():
        if args.only in (None, name):
            key = f"{name}_{args.model}" if name == "server" and args.model else name
            with tempfile.TemporaryDirectory(dir=default_cache_dir().parent) as folder:
                results[key] = measure(Path(folder))
            print(json.dumps({key: results[key]}, indent=1))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
