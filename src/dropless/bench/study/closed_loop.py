"""Users who each wait for their answer and then ask again, driven through an engine in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dropless.bench.metrics import Distribution, RequestRecord
from dropless.engine.messages import EngineRequest, TokenDelta
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import EngineError


class Steppable(Protocol):
    """What is needed of `dropless.engine.engine.Engine`."""

    def add_request(self, request: EngineRequest) -> None: ...
    def step(self) -> list[TokenDelta]: ...


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen in a span of time with a constant number of users. Latencies are of the
    answers that ended in it, in milliseconds."""

    users: int
    seconds: float
    steps: int
    answers: int
    output_tokens_per_s: float
    total_tokens_per_s: float  # with the prompts whose first token came in the span
    tpot: Distribution
    ttft: Distribution


class OutOfTimeError(Exception):
    """The time for a measurement is up."""


class ClosedLoop:
    """Every user has one request at a time, and sends the next when its answer ends: greedy, always
    `output_tokens` long. What takes time raises OutOfTimeError when `is_late`."""

    def __init__(
        self,
        engine: Steppable,
        *,
        prompt: Callable[[], list[int]],
        output_tokens: int,
        clock: Callable[[], float],
        is_late: Callable[[], bool],
    ) -> None:
        """`prompt` makes up the token ids of one; `clock` tells seconds."""
        self.users = 0
        self._engine = engine
        self._prompt = prompt
        self._clock = clock
        self._is_late = is_late
        self._params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        self._sent = 0
        self._steps = 0
        self._live: dict[str, RequestRecord] = {}
        self._ended: list[RequestRecord] = []
        self._output_tokens = 0
        self._prompt_tokens = 0  # of those that have had their first token

    def grow(self, users: int, every_s: float) -> None:
        """One new user every so many seconds until there are `users`; the first of all at once."""
        due = self._clock() + (every_s if self.users else 0.0)
        while self.users < users:
            if self._clock() >= due:
                self._send()
                self.users += 1
                due += every_s
            else:
                self._step()

    def settle(self) -> None:
        """Until the last of the requests that run or wait now has ended."""
        begun = set(self._live)
        while begun & self._live.keys():
            self._step()

    def observe(self, answers: int) -> Window:
        """From now until so many answers have ended."""
        self._ended.clear()
        start, first_step = self._clock(), self._steps
        output, prompts = self._output_tokens, self._prompt_tokens
        while len(self._ended) < answers:
            self._step()
        seconds = self._clock() - start
        output, prompts = self._output_tokens - output, self._prompt_tokens - prompts
        tpot = Distribution.of_seconds(record.tpot_s for record in self._ended)
        ttft = Distribution.of_seconds(record.ttft_s for record in self._ended)
        assert tpot is not None
        assert ttft is not None
        return Window(
            users=self.users,
            seconds=seconds,
            steps=self._steps - first_step,
            answers=len(self._ended),
            output_tokens_per_s=output / seconds,
            total_tokens_per_s=(output + prompts) / seconds,
            tpot=tpot,
            ttft=ttft,
        )

    def _send(self) -> None:
        prompt = self._prompt()
        request = EngineRequest(f"user-{self._sent}", prompt, self._params)
        record = RequestRecord(self._sent, self._clock(), input_tokens=len(prompt))
        self._engine.add_request(request)
        self._live[request.request_id] = record
        self._sent += 1

    def _step(self) -> None:
        if self._is_late():
            raise OutOfTimeError
        deltas = self._engine.step()
        now = self._clock()
        self._steps += 1
        for delta in deltas:
            self._note(delta, now)

    def _note(self, delta: TokenDelta, now: float) -> None:
        record = self._live[delta.request_id]
        if delta.new_token_ids:
            if not record.arrivals:
                record.arrivals.append(now)
                self._prompt_tokens += record.input_tokens
            record.output_tokens += len(delta.new_token_ids)
            self._output_tokens += len(delta.new_token_ids)
        if delta.finish_reason is None:
            return
        if delta.finish_reason != "length":
            raise EngineError(f"{delta.request_id} ended with {delta.finish_reason}: {delta.error}")
        record.end_s = now
        self._ended.append(self._live.pop(delta.request_id))
        self._send()
