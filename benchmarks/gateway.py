"""What the gateway costs under load, what it holds, and that a restart loses nothing.

    python -m benchmarks.gateway
    python -m benchmarks.gateway --only cost --rounds 4
    python -m benchmarks.gateway --model qwen2.5-coder-0.5b-instruct --only restart

- `cost`: 64 users in a closed loop, in turns at two servers of one model: one with everything off,
  one with users and tokens, limits, inference and usage tables, metrics and traces; and there also
  at an endpoint with guardrails on input and output. Load by `dropless bench`, of words at random,
  of which a guardrail may refuse some. What counts is each turn beside the turn of the plain server
  next to it; and the processor time that all processes of the server take for a request, which is
  what throughput is made of where all cores are busy.
- `connections`: 1,000 connections that have asked once and rest, while 200 streams run to their
  end; then all 1,000 ask again.
- `restart`: 32 users in a closed loop while the server gets SIGTERM and is started again on its
  port, again and again. An answer that began must end; what is refused is asked again.

Everything runs on this machine, client and servers on the same processors. Writes
results/gateway.json beside this script.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from benchmarks.served import served, tokens_of

RESULTS = Path(__file__).parent / "results" / "gateway.json"
USERS = 64
INPUT, OUTPUT = 64, 16
IDLE, STREAMS = 1000, 200
RESTARTS, CLIENTS = 5, 32
CHECKS = {"safety": True, "pii": {"behavior": "MASK"}}


def endpoint(name: str, model: str, **gateway: Any) -> dict[str, Any]:
    return {"name": name, "served_entities": [{"name": "m", "model": model}], **gateway}


def everything(name: str, model: str, **more: Any) -> dict[str, Any]:
    """An endpoint with all that does not judge texts."""
    return endpoint(
        name,
        model,
        rate_limits=[
            {"key": "user", "itpm": 10**9, "otpm": 10**9, "qph": 10**6},
            {"key": "endpoint", "tokens": 10**9, "calls": 10**6},
        ],
        inference_table_config={"enabled": True, "table_name_prefix": name},
        usage_tracking_config={"enabled": True},
        **more,
    )


def cost(model: str, rounds: int, folder: Path) -> dict[str, Any]:
    token = tokens_of(folder / "on", "ada")["ada"]
    plain = {"endpoints": [endpoint("plain", model)], "telemetry": {"metrics": False}}
    full = {
        "endpoints": [
            everything("gateway", model),
            everything("guarded", model, guardrails={"input": CHECKS, "output": CHECKS}),
        ],
        # nobody listens there: spans are made, and thrown away by their own thread
        "telemetry": {"metrics": True, "otlp_endpoint": "http://127.0.0.1:9"},
    }
    with ExitStack() as stack:
        off = stack.enter_context(served(plain, folder / "off"))
        on = stack.enter_context(served(full, folder / "on"))
        ways = {"off": (*off, "plain", None), "on": (*on, "gateway", token)}
        ways["on, with guardrails"] = (*on, "guarded", token)
        seeds = itertools.count()  # no turn's prompts are in the prefix cache
        for way in ways.values():
            load(*way, requests=USERS, seed=next(seeds))
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for number in range(rounds):
            order = list(ways) if number % 2 else list(ways)[::-1]
            for name in order:
                turns[name].append(load(*ways[name], requests=3 * USERS, seed=next(seeds)))
                print(f"{name}: {turns[name][-1]}", flush=True)
    return {
        name: {figure: statistics.median(turn[figure] for turn in rows) for figure in rows[0]}
        | {
            f"{figure}, beside off": statistics.median(
                turn[figure] / other[figure] for turn, other in zip(rows, turns["off"], strict=True)
            )
            for figure in rows[0]
        }
        for name, rows in turns.items()
    }


def load(
    url: str, server: psutil.Process, name: str, token: str | None, *, requests: int, seed: int
) -> dict[str, float]:
    """`USERS` in a closed loop."""
    before = processor_s(server)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "dropless.cli.main", "bench", name, "--url", url]
        command += ["--api", "chat", "--concurrency", str(USERS), "--requests", str(requests)]
        command += ["--input-len", str(INPUT), "--output-len", str(OUTPUT), "--json", file.name]
        command += ["--workload-seed", str(seed)]
        if token is not None:
            command += ["--api-key", token]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        figures = json.loads(Path(file.name).read_text())["summary"]
    refused = sum(count for why, count in figures["errors"].items() if "guardrail" in why)
    if figures["failed"] > refused:
        raise SystemExit(f"{figures['failed']} requests failed at {name}: {figures['errors']}")
    return {
        "output tokens/s": figures["output_throughput"],
        "first token p50, ms": figures["ttft"]["p50"],
        "first token p99, ms": figures["ttft"]["p99"],
        "end to end p50, ms": figures["end_to_end"]["p50"],
        "processor time a request, ms": (processor_s(server) - before) / requests * 1e3,
    }


def processor_s(server: psutil.Process) -> float:
    """Of the server with all its processes, so far."""
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return float(sum(time.user + time.system for time in times))


def connections(model: str, folder: Path) -> dict[str, Any]:
    with served({"endpoints": [endpoint("m", model)]}, folder) as (url, process):
        before = process.memory_info().rss
        found = asyncio.run(_hold(url))
        return {
            **found,
            "memory of the server's HTTP process, MiB": {
                "before": before >> 20,
                "after": process.memory_info().rss >> 20,
            },
        }


async def _hold(url: str) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        idle = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=url, limits=limits))
            for _ in range(IDLE)
        ]
        for client in idle:
            (await client.get("/health")).raise_for_status()
        opened = time.monotonic() - began
        ports = [_local_port(client) for client in idle]
        active = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=None), timeout=600)
        )
        streams = await asyncio.gather(*(_stream(active, number) for number in range(STREAMS)))
        rested = time.monotonic() - began - opened
        answers = [await client.get("/health") for client in idle]
        kept = sum(_local_port(c) == port for c, port in zip(idle, ports, strict=True))
    return {
        "idle connections": IDLE,
        "that answered again": sum(answer.status_code == 200 for answer in answers),
        "on the same connection": kept,
        "seconds to open them": round(opened, 1),
        "seconds they rested": round(rested, 1),
        "streams at once": STREAMS,
        "that ended well": sum(streams),
    }


def _local_port(client: httpx.AsyncClient) -> int:
    [connection] = client._transport._pool.connections  # type: ignore[attr-defined]
    stream = connection._connection._network_stream
    return int(stream.get_extra_info("client_addr")[1])


async def _stream(client: httpx.AsyncClient, number: int) -> bool:
    """Whether it came to its end with all of its tokens."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": f"Count to {number}."}],
        "max_tokens": OUTPUT,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            return False
        lines = [line async for line in response.aiter_lines()]
    data = [line for line in lines if line.startswith("data: {")]
    usage = json.loads(data[-1].removeprefix("data: "))["usage"]
    return lines[-2:] == ["data: [DONE]", ""] and usage["completion_tokens"] == OUTPUT


@dataclass
class Tally:
    """What became of the requests that were sent while servers came and went."""

    ended: int = 0
    lost: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


def restart(model: str, folder: Path) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    document = {
        "server": {"port": port, "limits": {"shutdown_grace_s": 120}},
        "endpoints": [everything("m", model)],
        "identity": {"open": True},
    }
    return asyncio.run(_restart(document, f"http://127.0.0.1:{port}", folder))


async def _restart(document: dict[str, Any], url: str, folder: Path) -> dict[str, Any]:
    tally, stop = Tally(), asyncio.Event()
    away: list[float] = []
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)
    ) as client:
        users = []
        for number in range(RESTARTS + 1):
            began = time.monotonic()
            with ExitStack() as stack:
                await asyncio.to_thread(stack.enter_context, served(document, folder))
                if not users:
                    users = [
                        asyncio.create_task(_user(client, tally, stop)) for _ in range(CLIENTS)
                    ]
                else:
                    away.append(time.monotonic() - began)
                ended = tally.ended
                while tally.ended < ended + 2 * CLIENTS:
                    await asyncio.sleep(0.1)
                if number == RESTARTS:
                    stop.set()
                    await asyncio.gather(*users)
                await asyncio.to_thread(stack.close)
    return {
        "restarts": RESTARTS,
        "users": CLIENTS,
        "answers that ended": tally.ended,
        "answers that began and did not end": tally.lost,
        "refused, and asked again": dict(tally.refused),
        "seconds until the next server served": [round(seconds, 1) for seconds in away],
        "rows in the inference table": _count_rows(folder),
    }


async def _user(client: httpx.AsyncClient, tally: Tally, stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        began = False
        try:
            body = {
                "model": "m",
                "messages": [{"role": "user", "content": f"Count to {number}."}],
                "max_tokens": OUTPUT,
                "ignore_eos": True,
                "stream": bool(number % 2),
            }
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code == 503 and "retry-after" in response.headers:
                    tally.refused["503 with Retry-After"] += 1
                    await asyncio.sleep(float(response.headers["retry-after"]))
                    continue
                began = True
                lines = [line async for line in response.aiter_lines()]
            ended = "data: [DONE]" in lines if number % 2 else bool(json.loads("".join(lines)))
            if response.status_code == 200 and ended:
                tally.ended += 1
            else:
                tally.lost.append(f"{response.status_code}: {' '.join(lines)[-200:]}")
        except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
            if isinstance(error, httpx.ConnectError) and not began:
                tally.refused["no connection"] += 1  # while no server listens
            else:
                tally.lost.append(repr(error))
            await asyncio.sleep(0.2)


def _count_rows(folder: Path) -> dict[str, int]:
    """By status."""
    command = [sys.executable, "-m", "dropless.cli.main", "tables", "query", "--format", "json"]
    query = "SELECT status_code, count(*) AS rows FROM m_payload GROUP BY 1"
    done = subprocess.run(
        [*command, "--data", str(folder / "data"), query],
        check=True,
        capture_output=True,
        text=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {str(row["status_code"]): row["rows"] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=6, help="of cost: turns of each way")
    parser.add_argument("--only", choices=("cost", "connections", "restart"))
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        parts = {
            "cost": lambda: cost(arguments.model, arguments.rounds, Path(name, "cost")),
            "connections": lambda: connections(arguments.model, Path(name, "connections")),
            "restart": lambda: restart(arguments.model, Path(name, "restart")),
        }
        for part in [arguments.only] if arguments.only else parts:
            load_before = os.getloadavg()[0]
            results[part] = {
                "date": datetime.now(UTC).isoformat(timespec="minutes"),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "load before": round(load_before, 2),
                "model": arguments.model,
                **parts[part](),
            }
            print(json.dumps(results[part], indent=1), flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
