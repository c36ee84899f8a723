"""Drives an engine in this process, with the same workloads and records as the load client."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from dropless.bench.metrics import RequestRecord
from dropless.bench.workload import PlannedRequest, Workload
from dropless.engine.messages import EngineRequest, TokenDelta
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import DroplessError
from dropless.text.tokenizer import Tokenizer

_run_numbers = itertools.count()


class Steppable(Protocol):
    """What is needed of `dropless.engine.engine.Engine`."""

    def add_request(self, request: EngineRequest) -> None: ...
    def step(self) -> list[TokenDelta]: ...


class OfflineRun:
    """One workload, fed to `engine` between its steps; greedy, ignoring the end-of-sequence token.

    A token has arrived when the step that made it returns. Times are seconds from the start.
    """

    def __init__(
        self,
        engine: Steppable,
        tokenizer: Tokenizer,
        workload: Workload,
        on_finish: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._workload = workload
        self._on_finish = on_finish
        self._run_number = next(_run_numbers)
        self._live: dict[str, RequestRecord] = {}
        self._finished: list[RequestRecord] = []
        self._start = 0.0

    def run(self) -> list[RequestRecord]:
        """Work through it all; records in the order of the requests. A refused or failed request
        has its `error` set; nothing is raised for it."""
        self._start = time.perf_counter()
        pending = deque(self._workload.requests)
        limit = self._workload.concurrency or len(pending)
        while pending or self._live:
            while pending and pending[0].due_s <= self._now() and len(self._live) < limit:
                self._add(pending.popleft())
            if self._live:
                deltas = self._engine.step()
                now = self._now()
                for delta in deltas:
                    self._note(delta, now)
            elif pending:
                time.sleep(max(0.0, pending[0].due_s - self._now()))
        return sorted(self._finished, key=lambda record: record.index)

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def _add(self, planned: PlannedRequest) -> None:
        prompt = planned.prompt
        ids = (
            self._tokenizer.encode(prompt, add_bos=self._tokenizer.add_bos)
            if isinstance(prompt, str)
            else prompt
        )
        began = self._now() if self._workload.arrival == "closed" else planned.due_s
        record = RequestRecord(planned.index, began, input_tokens=len(ids))
        params = SamplingParams(temperature=0.0, max_tokens=planned.output_tokens, ignore_eos=True)
        request = EngineRequest(f"bench-{self._run_number}-{planned.index}", ids, params)
        try:
            self._engine.add_request(request)
        except DroplessError as error:
            self._finish(record, self._now(), str(error))
        else:
            self._live[request.request_id] = record

    def _note(self, delta: TokenDelta, now: float) -> None:
        record = self._live[delta.request_id]
        if delta.new_token_ids:
            record.arrivals.append(now)
            record.output_tokens += len(delta.new_token_ids)
        if delta.finish_reason is not None:
            del self._live[delta.request_id]
            failed = delta.finish_reason in ("abort", "error")
            self._finish(record, now, (delta.error or delta.finish_reason) if failed else None)

    def _finish(self, record: RequestRecord, now: float, error: str | None) -> None:
        record.end_s, record.error = now, error
        self._finished.append(record)
        if self._on_finish is not None:
            self._on_finish(record)
