"""A real server in a process of its own, as `dropless serve` runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

START_S = 60.0


class ServerProcess:
    """Starts on construction, with the port already taken; `wait_until_ready` for the rest."""

    def __init__(self, folder: Path, *, port: int = 0, **options: Any) -> None:
        """`options` are fields of EngineConfig, `limits` those of HttpLimits, and `builder` makes
        another engine than the real one. `file`, of a configuration, or `configuration` itself
        stands in place of all."""
        arguments = [str(folder), json.dumps({"port": port, **options})]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.run_server", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors: list[str] = []
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.output: list[str] = []
        for pipe, lines in (
            (self.process.stdout, self.output),
            (self.process.stderr, self.errors),
        ):
            threading.Thread(target=_drain, args=(pipe, lines), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def wait_until_ready(self) -> ServerProcess:
        deadline = time.monotonic() + START_S
        while self.health().status_code != 200:
            assert self.process.poll() is None, "".join(self.errors)
            assert time.monotonic() < deadline, "".join(self.errors)
            time.sleep(0.05)
        return self

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.url}/health", timeout=START_S)

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.health().json()["stats"]
        return stats

    def wait_until_idle(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """The stats as soon as nothing runs or waits; fails if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while True:
            stats = self.stats()
            if stats["running"] == stats["waiting"] == 0:
                return stats
            assert time.monotonic() < deadline, stats
            time.sleep(0.02)

    def wait_until_running(self, count: int = 1) -> None:
        deadline = time.monotonic() + 10
        while self.stats()["running"] < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", **options)

    def engine_process(self) -> psutil.Process:
        for child in psutil.Process(self.process.pid).children():
            if "dropless.engine.process" in child.cmdline():
                return child
        raise AssertionError("no engine process")

    def signal(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        return self.process.wait(timeout_s)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def _drain(pipe: Any, lines: list[str]) -> None:
    lines.extend(iter(pipe.readline, ""))
