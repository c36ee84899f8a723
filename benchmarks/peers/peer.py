"""A peer: a model served or loaded in processes of its own, measured through one interface."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil

from dropless.bench.load_client import LoadClient
from dropless.bench.metrics import RequestRecord
from dropless.bench.workload import PlannedRequest, Workload

HERE = Path(__file__).parent
START_TIMEOUT_S = 180.0


class Peer(Protocol):
    """`measure` sends all prompts at once and waits for every answer of `output_tokens` tokens."""

    name: str
    process: subprocess.Popen[str]

    def measure(self, prompts: list[list[int]], output_tokens: int) -> list[RequestRecord]: ...


class ServerPeer:
    """Measured over HTTP with our load client, streaming."""

    def __init__(self, name: str, process: subprocess.Popen[str], url: str, model: str) -> None:
        self.name = name
        self.process = process
        self._client = LoadClient(url, model)

    def measure(self, prompts: list[list[int]], output_tokens: int) -> list[RequestRecord]:
        planned = [PlannedRequest(i, 0.0, p, len(p), output_tokens) for i, p in enumerate(prompts)]
        records = self._client.run(Workload("closed", planned, len(planned)))
        return _checked(self.name, records, output_tokens)


class BatchPeer:
    """Measured over standard input and output, one line of JSON a batch."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self.process = process

    def measure(self, prompts: list[list[int]], output_tokens: int) -> list[RequestRecord]:
        assert self.process.stdin is not None
        batch = {"prompts": prompts, "output_tokens": output_tokens}
        self.process.stdin.write(json.dumps(batch) + "\n")
        self.process.stdin.flush()
        answer = _read_line(self.name, self.process)
        each = answer.get("records") or [answer] * len(prompts)
        records = [
            RequestRecord(
                i, 0.0, times["end_s"], [times["first_token_s"]], len(prompt), output_tokens
            )
            for i, (prompt, times) in enumerate(zip(prompts, each, strict=True))
        ]
        return _checked(self.name, records, output_tokens)


def llama_cpp(gguf: Path, threads: int, slots: int, slot_tokens: int) -> ServerPeer:
    process = _start("llama_cpp_server.py", str(gguf), threads, slots, slot_tokens)
    url = _read_line("llama.cpp", process)["url"]
    return ServerPeer("llama.cpp", process, url, "default")


def transformers_batch(gguf: Path, threads: int) -> BatchPeer:
    process = _start("transformers_batch.py", str(gguf), threads)
    _read_line("transformers", process)
    return BatchPeer("transformers", process)


def dropless_offline(gguf: Path, threads: int) -> BatchPeer:
    process = _start("dropless_offline.py", str(gguf), threads)
    _read_line("dropless offline", process)
    return BatchPeer("dropless offline", process)


def dropless_server(gguf: Path, threads: int, port: int) -> ServerPeer:
    arguments = ["serve", str(gguf), "--port", str(port), "--threads", str(threads)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dropless.cli.main", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            models = json.load(urllib.request.urlopen(f"{url}/v1/models", timeout=5))
            return ServerPeer("dropless", process, url, models["data"][0]["id"])
        time.sleep(0.2)
    raise RuntimeError(f"dropless serve did not start (exit status {process.poll()})")


def peak_rss_bytes(peer: Peer) -> int:
    """Sum over the peer's processes of their highest resident size so far; pages that they share
    count more than once, so this is an upper bound."""
    return sum(_status_kib(process.pid, "VmHWM") for process in _tree(peer)) * 1024


def pss_bytes(peer: Peer) -> int:
    """Memory of the peer's processes now, shared pages divided among those who share them."""
    return sum(process.memory_full_info().pss for process in _tree(peer))


def stop(peer: Peer) -> None:
    family = _tree(peer)
    peer.process.terminate()
    _, alive = psutil.wait_procs(family, timeout=15)
    for process in alive:
        process.kill()


def _tree(peer: Peer) -> Sequence[psutil.Process]:
    root = psutil.Process(peer.process.pid)
    return [root, *root.children(recursive=True)]


def _status_kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no {field}")


def _start(script: str, *arguments: str | int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _read_line(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} ended with exit status {process.wait()}; run its script alone")
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def _checked(name: str, records: list[RequestRecord], output_tokens: int) -> list[RequestRecord]:
    """A comparison holds only if everyone did the whole work."""
    for record in records:
        if record.error is not None or record.output_tokens != output_tokens:
            raise RuntimeError(
                f"{name}: request {record.index} gave {record.output_tokens} of {output_tokens} "
                f"tokens ({record.error})"
            )
    return records
