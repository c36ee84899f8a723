"""Users who each wait for their answer and then ask again, driven through an engine in here."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dropless.bench.metrics import Distribution, RequestRecord
from dropless.engine.messages import EngineRequest, TokenDelta
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import EngineError

_LONGEST_WINDOW = 3.0  # times the window asked for, until every user has had an answer


class Steppable(Protocol):
    """What is needed of `dropless.engine.engine.Engine`."""

    def add_request(self, request: EngineRequest) -> None: ...
    def step(self) -> list[TokenDelta]: ...


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen in a span of time with a constant number of users. Latencies are of the
    answers that ended in it, in milliseconds; None where none did."""

    users: int
    seconds: float
    steps: int
    answers: int
    output_tokens_per_s: float
    total_tokens_per_s: float  # with the prompts whose first token came in the span
    tpot: Distribution | None
    ttft: Distribution | None


class ClosedLoop:
    """Every user has one request at a time, of random token ids, and sends the next when its answer
    ends: greedy, always `output_tokens` long."""

    def __init__(
        self,
        engine: Steppable,
        clock: Callable[[], float],
        *,
        input_tokens: int,
        output_tokens: int,
        vocab_size: int,
    ) -> None:
        """`clock` tells seconds; it may run ahead of the wall's. Prompts keep to ids below
        `vocab_size`."""
        self.users = 0
        self._engine = engine
        self._clock = clock
        self._input_tokens = input_tokens
        self._vocab_size = vocab_size
        self._params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        self._random = random.Random(0)
        self._sent = 0
        self._steps = 0
        self._live: dict[str, RequestRecord] = {}
        self._ended: list[RequestRecord] = []
        self._output: list[tuple[float, int]] = []  # when how many tokens came

    def grow(self, users: int, every_s: float, expired: Callable[[], bool]) -> bool:
        """One new user every so many seconds until there are `users`, and then until the last of
        the requests that were begun by then has ended. False if `expired` before."""
        due = self._clock()
        while self.users < users:
            if self._clock() >= due:
                self._send()
                self.users += 1
                due += every_s
            elif expired():
                return False
            else:
                self._step()
        begun = set(self._live)
        while begun & self._live.keys():
            if expired():
                return False
            self._step()
        return True

    def observe(self, window_s: float, expired: Callable[[], bool]) -> Window | None:
        """The next `window_s` seconds, or longer until there were as many answers as users, at most
        three times as long. None if `expired` before."""
        self._ended.clear()
        self._output.clear()
        start, first_step = self._clock(), self._steps
        while True:
            elapsed = self._clock() - start
            is_enough = len(self._ended) >= self.users or elapsed >= _LONGEST_WINDOW * window_s
            if elapsed >= window_s and is_enough:
                break
            if expired():
                return None
            self._step()
        first_tokens = [
            record
            for record in [*self._ended, *self._live.values()]
            if record.arrivals and record.arrivals[0] >= start
        ]
        output = sum(count for _, count in self._output)
        prompts = sum(record.input_tokens for record in first_tokens)
        return Window(
            users=self.users,
            seconds=elapsed,
            steps=self._steps - first_step,
            answers=len(self._ended),
            output_tokens_per_s=output / elapsed,
            total_tokens_per_s=(output + prompts) / elapsed,
            tpot=Distribution.of_seconds(record.tpot_s for record in self._ended),
            ttft=Distribution.of_seconds(record.ttft_s for record in self._ended),
        )

    def _send(self) -> None:
        prompt = self._random.choices(range(self._vocab_size), k=self._input_tokens)
        request = EngineRequest(f"study-{self._sent}", prompt, self._params)
        record = RequestRecord(self._sent, self._clock(), input_tokens=len(prompt))
        self._engine.add_request(request)
        self._live[request.request_id] = record
        self._sent += 1

    def _step(self) -> None:
        deltas = self._engine.step()
        now = self._clock()
        self._steps += 1
        for delta in deltas:
            self._note(delta, now)

    def _note(self, delta: TokenDelta, now: float) -> None:
        record = self._live[delta.request_id]
        if delta.new_token_ids:
            record.arrivals.append(now)
            record.output_tokens += len(delta.new_token_ids)
            self._output.append((now, len(delta.new_token_ids)))
        if delta.finish_reason is None:
            return
        if delta.finish_reason != "length":
            raise EngineError(f"{delta.request_id} ended with {delta.finish_reason}: {delta.error}")
        record.end_s = now
        self._ended.append(self._live.pop(delta.request_id))
        self._send()
