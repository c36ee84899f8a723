"""Clients that ask without pause until they are told to stop."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx


@dataclass(frozen=True)
class Outcome:
    """`status` is 0 if no response began; `whole` says that it came to its proper end. Times are
    time.monotonic() seconds."""

    sent: float
    ended: float
    status: int
    whole: bool
    text: str
    headers: httpx.Headers


class Load:
    """Each client sends one streamed request after the other, on a connection that it keeps."""

    def __init__(self, url: str, body: dict[str, Any], clients: int = 4) -> None:
        self.outcomes: list[Outcome] = []
        self._url = url
        self._body = {**body, "stream": True}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Until so many more have ended."""
        wanted, deadline = len(self.outcomes) + count, time.monotonic() + 60
        while len(self.outcomes) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _ask(self) -> None:
        with httpx.Client(timeout=120) as client:
            while not self._stop.is_set():
                self.outcomes.append(self._one(client))

    def _one(self, client: httpx.Client) -> Outcome:
        sent = time.monotonic()
        status, text, headers = 0, "", httpx.Headers()
        try:
            with client.stream("POST", self._url, json=self._body) as response:
                status, headers = response.status_code, response.headers
                text = "".join(response.iter_text())
        except httpx.TransportError:
            self._stop.wait(0.05)
            return Outcome(sent, time.monotonic(), status, False, text, headers)
        if status != 200:
            self._stop.wait(0.05)
        whole = text.endswith("data: [DONE]\n\n") if status == 200 else True
        return Outcome(sent, time.monotonic(), status, whole, text, headers)
