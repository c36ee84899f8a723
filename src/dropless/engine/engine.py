"""The engine: checks requests at the door, then schedules, runs and accounts step after step.

On a device that computes by itself the next step is scheduled and launched while one runs, so that
the device always has work: what follows from a step's tokens is done in the time of the next.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import msgspec

from dropless.engine import long_prompts
from dropless.engine.constraints import Constraints
from dropless.engine.kv_cache import KVCache
from dropless.engine.long_prompts import LongPrompts
from dropless.engine.messages import MOST_WEIGHT, EngineRequest, EngineStats, TokenDelta
from dropless.engine.request import Request
from dropless.engine.scheduler import ScheduledStep, Scheduler
from dropless.engine.step import LaunchedStep, StepInput
from dropless.engine.step_size import StepSize
from dropless.errors import (
    ContextLengthError,
    EngineOverloadedError,
    InvalidRequestError,
    OutOfMemoryError,
)
from dropless.text.grammar import CompiledGrammar

logger = logging.getLogger(__name__)

_MOST_LOST_STEPS = 8  # of a request, since its last token; each for want of memory
_REST = 3.0  # times as long as it works, a grammar's compiler rests while there are steps
RETRY_AFTER_S = 1.0  # when the queue is full; it moves with every request that ends


class StepExecutor(Protocol):
    """Whoever computes steps, in the order in which they are launched:
    `dropless.engine.executor.Executor`."""

    @property
    def overlaps(self) -> bool:
        """Whether a launched step is computed while the host does something else."""

    def launch(self, step: StepInput) -> LaunchedStep:
        """Start a step. A result that nobody asks for is lost, and changes nothing."""

    @property
    def expert_counts(self) -> list[list[int]]:
        """How many tokens went to each expert, by layer; empty for a dense model. Never changed,
        but replaced."""

    def survives(self, error: BaseException) -> bool:
        """Whether a smaller step may follow one that raised this: there was not memory enough."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step whose result is not known yet."""

    scheduled: ScheduledStep
    launched: LaunchedStep
    launched_at: float  # time.perf_counter(), before it was


class Engine:
    """Requests in, deltas out, one step at a time. Belongs to one thread."""

    def __init__(
        self,
        executor: StepExecutor,
        constraints: Constraints,
        *,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        max_running_requests: int,
        max_waiting_requests: int,
        step_token_budget: int,
        prefix_caching: bool,
        long_prompts: LongPrompts = long_prompts.DEFAULT,
    ) -> None:
        """`num_blocks` cache blocks of `block_size` tokens are the executor's; all other sizes are
        in tokens or requests, as in `EngineConfig`."""
        self._executor = executor
        self._constraints = constraints
        self._max_model_len = max_model_len
        self._cache_len = num_blocks * block_size
        self._max_waiting = max_waiting_requests
        self._step_size = StepSize(step_token_budget)
        self._cache = KVCache(num_blocks, block_size, prefix_caching=prefix_caching)
        self._scheduler = Scheduler(
            self._cache,
            max_running_requests=max_running_requests,
            step_token_budget=step_token_budget,
            long_prompts=long_prompts,
        )
        self._in_flight: deque[_InFlight] = deque()  # the oldest first; at most two
        self._at_work: ScheduledStep | None = None  # launched or waited for last
        self._arrivals = itertools.count()
        self._steps = 0
        self._last_result_at = 0.0  # time.perf_counter()
        self._last_step_s = 0.0
        self._last_schedule_s = 0.0

    def compile_grammar(self, message: EngineRequest) -> CompiledGrammar | None:
        """What `add_request` begins with, if there is a grammar, and finds done while somebody
        holds the result. For another thread: while there are steps, it leaves most of the time to
        them.

        Raises:
            GrammarError: it cannot be used.
        """
        grammar = message.params.grammar
        return None if grammar is None else self._constraints.compile(grammar, self._beside_steps)

    def known_grammar(self, message: EngineRequest) -> CompiledGrammar | None:
        """What `compile_grammar` would give, if that is compiled already."""
        grammar = message.params.grammar
        return None if grammar is None else self._constraints.known(grammar)

    def _beside_steps(self, worked_s: float) -> None:
        if self.has_work():
            time.sleep(_REST * worked_s)

    def add_request(self, message: EngineRequest) -> None:
        """Queue a request. One that is refused leaves no trace.

        Raises:
            InvalidRequestError: the id is in use, or prompt or parameters are wrong.
            ContextLengthError: it could never fit into the context or the cache.
            GrammarError: its grammar cannot be used.
            EngineOverloadedError: the queue is full.
        """
        if message.request_id in self._scheduler:
            raise InvalidRequestError(
                f"request_id {message.request_id!r} is in use; give every request its own",
                param="request_id",
                code="duplicate_request_id",
            )
        self._check_prompt(message.prompt_token_ids)
        if not 1 / MOST_WEIGHT <= message.weight <= MOST_WEIGHT:
            raise InvalidRequestError(
                f"weight is {message.weight}; it must be between {1 / MOST_WEIGHT:g} and"
                f" {MOST_WEIGHT:g}",
                param="weight",
            )
        max_new_tokens = self._room(message)
        self._check_queue(message)
        request = self._make_request(message, max_new_tokens)
        request.grammar = self._constraints.check(message.params, max_new_tokens)
        self._scheduler.add(request)

    def abort(self, request_ids: list[str]) -> list[TokenDelta]:
        """End these requests; the last delta of each that was live."""
        deltas = [self._scheduler.abort(request_id) for request_id in request_ids]
        if not self._has_requests():
            self.check_integrity()
        return [delta for delta in deltas if delta is not None]

    def has_work(self) -> bool:
        """Whether `step` has something to do: a request is live or a step not finished."""
        return bool(self._in_flight) or self._has_requests()

    def step(self) -> list[TokenDelta]:
        """Finish one step; a delta for each request that got a token or ended in it. The next one
        runs by then, where the executor overlaps. Does nothing when there is no work. If it raises,
        every request stands where it stood before and, should the executor still work, goes on
        from there. So it does when the step lacked memory: smaller ones follow, and only a request
        that gets no token out of many ends with an error."""
        if not self.has_work():
            return []
        started = time.perf_counter()
        self._last_schedule_s = 0.0
        deltas: list[TokenDelta] = []
        try:
            self._finish_step(deltas)
        except BaseException as error:
            self._in_flight.clear()
            self._scheduler.preempt_all()
            if not self._executor.survives(error):
                raise
            deltas += self._lacked_memory(error)
        else:
            if self._step_size.succeeded():
                self._scheduler.resize_steps(self._step_size.tokens)
        if not self._has_requests():
            self.check_integrity()
        self._steps += 1
        self._last_step_s = time.perf_counter() - started
        return deltas

    def stats(self) -> EngineStats:
        counters = self._scheduler.counters
        return EngineStats(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            kv_blocks_total=self._cache.num_blocks,
            kv_blocks_free=self._cache.num_free,
            steps=self._steps,
            prompt_tokens=counters.prompt_tokens,
            generated_tokens=counters.generated_tokens,
            prefix_hit_tokens=counters.prefix_hit_tokens,
            preemptions=counters.preemptions,
            finished_requests=counters.finished_requests,
            last_step_ms=self._last_step_s * 1e3,
            last_schedule_ms=self._last_schedule_s * 1e3,
        )

    def expert_counts(self) -> list[list[int]]:
        """How many tokens of one step a second went to each expert, by layer. May be called from
        another thread."""
        return self._executor.expert_counts

    def check_integrity(self) -> None:
        """Every block must be free when nothing is live.

        Raises:
            EngineError: a block is lost, or held by nobody.
        """
        self._cache.check_all_free()

    def close(self) -> None:
        self._executor.close()

    def _has_requests(self) -> bool:
        return self._scheduler.num_running > 0 or self._scheduler.num_waiting > 0

    def _finish_step(self, deltas: list[TokenDelta]) -> None:
        """Wait for the oldest step, whose deltas are added to those given, with the next one behind
        it: launched before, where that may be, or as soon as the oldest step's tokens are known."""
        overlaps = self._executor.overlaps
        if not self._in_flight:
            self._launch_step()
        if overlaps and self._in_flight[0].scheduled.can_run_on:
            self._launch_step()
        oldest = self._in_flight.popleft()
        self._at_work = oldest.scheduled
        result = oldest.launched.result()
        started = time.perf_counter()
        waited_s = started - max(oldest.launched_at, self._last_result_at)
        self._last_result_at = started
        self._scheduler.note_time(oldest.scheduled, waited_s)
        deltas += self._scheduler.update(oldest.scheduled, result)
        self._last_schedule_s += time.perf_counter() - started
        if overlaps and not self._in_flight:
            self._launch_step()

    def _lacked_memory(self, error: BaseException) -> list[TokenDelta]:
        """Smaller steps shall follow. Requests of this one that have failed so too often end."""
        step = self._at_work
        assert step is not None
        num_tokens = sum(step.input.num_tokens)
        self._step_size.failed(num_tokens)
        self._scheduler.resize_steps(self._step_size.tokens)
        deltas = self._scheduler.lose(
            step,
            _MOST_LOST_STEPS,
            OutOfMemoryError(
                f"the device has no memory left, not even for a step of {num_tokens} tokens; try "
                "again, or free memory that other programs have taken"
            ),
        )
        given_up = [delta.request_id for delta in deltas]
        logger.warning(
            "a step of %d tokens lacked memory: steps of up to %d tokens follow; given up: %s (%s)",
            num_tokens,
            self._step_size.tokens,
            ", ".join(given_up) or "no request",
            error,
            extra={"fields": {"request_ids": given_up}},
        )
        return deltas

    def _launch_step(self) -> None:
        started = time.perf_counter()
        step = self._scheduler.schedule()
        scheduled = time.perf_counter()
        self._last_schedule_s += scheduled - started
        if step is not None:
            self._at_work = step
            self._in_flight.append(_InFlight(step, self._executor.launch(step.input), scheduled))

    def _check_queue(self, message: EngineRequest) -> None:
        """A request that has a row to start in does not wait. One of an owner within its share
        finds a place in a queue that others have filled, up to twice its length."""
        num_waiting = self._scheduler.num_waiting
        ahead = num_waiting - self._scheduler.num_free_rows
        if ahead < self._max_waiting:
            return
        is_within = self._scheduler.may_join(message.owner, message.priority, message.weight)
        if is_within and ahead < 2 * self._max_waiting:
            return
        raise EngineOverloadedError(
            f"{num_waiting} requests are waiting already; the queue takes {self._max_waiting}. "
            f"Try again in {RETRY_AFTER_S:g} s",
            retry_after_s=RETRY_AFTER_S,
        )

    def _check_prompt(self, token_ids: list[int]) -> None:
        if not token_ids:
            raise InvalidRequestError(
                "the prompt is empty; give at least one token", param="prompt"
            )
        vocab_size = self._constraints.vocab_size
        for token_id in (min(token_ids), max(token_ids)):
            if not 0 <= token_id < vocab_size:
                raise InvalidRequestError(
                    f"the prompt has the token id {token_id}; this model has 0 to {vocab_size - 1}",
                    param="prompt",
                )

    def _room(self, message: EngineRequest) -> int:
        """How many tokens the request may generate, at least one."""
        num_prompt = len(message.prompt_token_ids)
        limit = min(self._max_model_len, self._cache_len)
        if num_prompt >= limit:
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens, which leaves no room for a new one: "
                f"{self._limit_text()}. Shorten the prompt to {limit - 1} tokens or fewer",
                param="prompt",
            )
        room = limit - num_prompt
        if message.params.min_tokens > room:
            raise InvalidRequestError(
                f"min_tokens is {message.params.min_tokens}, but after a prompt of {num_prompt} "
                f"tokens there is room for {room}: {self._limit_text()}",
                param="min_tokens",
            )
        return min(room, message.params.max_tokens or room)

    def _limit_text(self) -> str:
        text = f"the context is {self._max_model_len} tokens"
        if self._cache_len < self._max_model_len:
            text += f" and the KV cache holds {self._cache_len}"
        return text

    def _make_request(self, message: EngineRequest, max_new_tokens: int) -> Request:
        params = msgspec.structs.replace(message.params, max_tokens=max_new_tokens)
        # An end token always ends constrained output: nothing can follow it.
        ignores_eos = params.ignore_eos and params.grammar is None
        eos_token_ids = () if ignores_eos else self._constraints.eos_token_ids
        num_prompt = len(message.prompt_token_ids)
        return Request(
            request_id=message.request_id,
            owner=message.owner,
            order=(-message.priority, next(self._arrivals)),
            params=params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            token_ids=list(message.prompt_token_ids),
            num_prompt_tokens=num_prompt,
            max_len=num_prompt + max_new_tokens,
            end_token_ids=frozenset((*eos_token_ids, *params.stop_token_ids)),
            weight=message.weight,
        )
