"""Who computes how many tokens in the next step, and what a step's tokens mean for each request.

There is no prefill phase and no decode phase: every request has `num_computed` tokens chasing
those it has, under one budget of tokens for a step.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from operator import attrgetter

from dropless.engine.kv_cache import KVCache
from dropless.engine.messages import TokenDelta
from dropless.engine.request import NO_ROW, Request
from dropless.engine.step import NewRequest, StepInput, StepResult
from dropless.errors import EngineError

_ORDER = attrgetter("order")


@dataclass(slots=True)
class Counters:
    """Sums since the start. A request's prompt counts once, however often it is computed."""

    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    finished_requests: int = 0


@dataclass(slots=True)
class ScheduledStep:
    """A step and whose rows those are: `requests[i]` runs in `input.rows[i]`."""

    requests: list[Request]
    input: StepInput


@dataclass(slots=True)
class _Plan:
    """A step in the making."""

    budget: int  # tokens that may still be added
    decodes: list[Request] = field(default_factory=list)  # one token each
    chunks: dict[Request, int] = field(default_factory=dict)
    new_requests: list[NewRequest] = field(default_factory=list)

    def add(self, request: Request, num_tokens: int) -> None:
        self.budget -= num_tokens
        if num_tokens == 1:
            self.decodes.append(request)
        else:
            self.chunks[request] = num_tokens

    def remove(self, request: Request) -> None:
        if request in self.chunks:
            self.budget += self.chunks.pop(request)
        elif request in self.decodes:
            self.decodes.remove(request)
            self.budget += 1


class Scheduler:
    """Requests in the order of priority, then arrival: both those that run and those that wait.

    A step takes first the running requests that have one token to compute, then other running
    ones, then waiting ones as long as the next fits. When a running request finds no free block,
    the last of the running ones is preempted: it waits again, keeps its tokens and is computed
    anew later. The last itself just stands still. So the first of all always advances, and whoever
    can fit alone ends some day.
    """

    def __init__(
        self, cache: KVCache, *, max_running_requests: int, step_token_budget: int
    ) -> None:
        self.counters = Counters()
        self._cache = cache
        self._budget = step_token_budget
        # Each running request can have a token in every step.
        self._max_running = min(max_running_requests, step_token_budget)
        self._live: dict[str, Request] = {}
        self._running: list[Request] = []
        self._waiting: list[Request] = []
        self._free_rows = list(range(self._max_running - 1, -1, -1))
        self._freed_rows: list[int] = []  # the runner has not been told of these

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._live

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_free_rows(self) -> int:
        """How many more requests may run."""
        return len(self._free_rows)

    def add(self, request: Request) -> None:
        """Let a request wait for its turn. Alone in the cache it must fit."""
        self._live[request.request_id] = request
        insort(self._waiting, request, key=_ORDER)

    def abort(self, request_id: str) -> TokenDelta | None:
        """End a request. Returns its last delta, or None if there is no such request any more."""
        request = self._live.get(request_id)
        if request is None:
            return None
        self._end(request)
        return request.aborted()

    def preempt_all(self) -> None:
        """Let everything that runs wait again, as after a step whose outcome is unknown."""
        while self._running:
            self._preempt_last()
        self._freed_rows = list(self._free_rows)  # what that step told the runner may be lost

    def schedule(self) -> ScheduledStep:
        """The next step. It has rows if any request is live; all blocks that it needs are taken."""
        plan = _Plan(self._budget)
        self._schedule_running(plan)
        self._schedule_waiting(plan)
        return self._make_step(plan)

    def update(self, step: ScheduledStep, result: StepResult) -> list[TokenDelta]:
        """Take in the outcome of a step, before the next is scheduled. Returns a delta for each
        request that got a token or ended.

        Raises:
            EngineError: the result does not belong to the step; nothing has changed then.
        """
        _check(step.input, result)
        for i, entries in result.prompt_logprobs.items():
            gathered = step.requests[i].prompt_logprobs
            if gathered is not None:
                gathered += entries
        deltas = []
        errors, finished = result.errors, result.grammar_finished
        block_size = self._cache.block_size
        outcomes = zip(
            step.requests, step.input.num_tokens, result.token_ids, result.logprobs, strict=True
        )
        for i, (request, num_tokens, token_id, logprob) in enumerate(outcomes):
            request.num_computed += num_tokens
            if num_tokens > 1 or request.num_computed % block_size == 0:
                self._cache.register(request)
            if i in errors:
                delta = request.failed(errors[i])
            elif token_id is not None:
                delta = request.accept(token_id, logprob, grammar_finished=i in finished)
            else:
                continue
            deltas.append(delta)
            if delta.finish_reason is not None:
                self._end(request)
        self.counters.generated_tokens += len(deltas) - len(errors)
        return deltas

    def _schedule_running(self, plan: _Plan) -> None:
        longer = []
        block_size = self._cache.block_size
        for request in self._running:  # preemption shortens it from its end
            num_computed = request.num_computed
            if len(request.token_ids) - num_computed > 1:
                longer.append(request)
            elif num_computed < len(request.blocks) * block_size or self._make_room(
                request, 1, plan
            ):
                plan.decodes.append(request)
        plan.budget -= len(plan.decodes)
        for request in longer:
            if plan.budget == 0:
                break
            if request.row == NO_ROW:  # preempted meanwhile
                continue
            wanted = min(plan.budget, len(request.token_ids) - request.num_computed)
            granted = self._make_room(request, wanted, plan)
            if granted:
                plan.add(request, granted)

    def _schedule_waiting(self, plan: _Plan) -> None:
        """Start waiting requests, strictly in order, so that a long one is not passed over. Who
        was preempted in this step needs more blocks than it left, and so does not start again."""
        while self._waiting and self._free_rows and plan.budget:
            request = self._waiting[0]
            # Leave the others a block each to grow into, or they would preempt it soon.
            if not self._cache.start(request, reserve=len(self._running)):
                return
            del self._waiting[0]
            insort(self._running, request, key=_ORDER)
            if request.scheduled_time == 0.0:
                self._count_start(request)
            plan.new_requests.append(request.start(self._free_rows.pop()))
            wanted = min(plan.budget, len(request.token_ids) - request.num_computed)
            plan.add(request, self._cache.grow(request, wanted))

    def _count_start(self, request: Request) -> None:
        request.scheduled_time = time.time()
        request.num_cached_tokens = request.num_computed
        self.counters.prompt_tokens += request.num_prompt_tokens
        self.counters.prefix_hit_tokens += request.num_computed

    def _make_room(self, request: Request, num_tokens: int, plan: _Plan) -> int:
        """How many of its next `num_tokens` a running request can compute. Others are preempted
        only to make that more than none, and only those behind it."""
        while True:
            granted = self._cache.grow(request, num_tokens)
            last = self._running[-1]
            if granted or last is request:
                return granted
            plan.remove(last)
            self._preempt_last()

    def _preempt_last(self) -> None:
        request = self._running.pop()
        self._release(request)
        insort(self._waiting, request, key=_ORDER)
        self.counters.preemptions += 1

    def _end(self, request: Request) -> None:
        del self._live[request.request_id]
        self.counters.finished_requests += 1
        queue = self._waiting if request.row == NO_ROW else self._running
        del queue[bisect_left(queue, request.order, key=_ORDER)]
        if request.row != NO_ROW:
            self._release(request)

    def _release(self, request: Request) -> None:
        self._free_rows.append(request.row)
        self._freed_rows.append(request.row)
        self._cache.release(request)
        request.reset()

    def _make_step(self, plan: _Plan) -> ScheduledStep:
        requests = [*plan.decodes, *plan.chunks]
        num_tokens = [1] * len(plan.decodes) + list(plan.chunks.values())
        num_computed = [request.num_computed for request in requests]
        step = StepInput(
            rows=[request.row for request in requests],
            num_computed=num_computed,
            num_tokens=num_tokens,
            new_blocks=[_handed_over(request) for request in requests],
            sample=[
                before + count == len(request.token_ids)
                for before, count, request in zip(num_computed, num_tokens, requests, strict=True)
            ],
            new_requests=plan.new_requests,
            freed_rows=self._freed_rows,
        )
        self._freed_rows = []
        return ScheduledStep(requests, step)


def _handed_over(request: Request) -> list[int]:
    blocks, request.new_blocks = request.new_blocks, []
    return blocks


def _check(step: StepInput, result: StepResult) -> None:
    """Raises EngineError unless every row that samples has a token or an error, and no other."""
    if not len(step.rows) == len(result.token_ids) == len(result.logprobs):
        raise EngineError(
            f"a step of {len(step.rows)} rows came back with {len(result.token_ids)} tokens and "
            f"{len(result.logprobs)} log probabilities"
        )
    answered = [token_id is not None for token_id in result.token_ids]
    if answered == step.sample:
        return
    for i, (due, token_id) in enumerate(zip(step.sample, result.token_ids, strict=True)):
        if due != (token_id is not None) and i not in result.errors:
            raise EngineError(
                f"row {step.rows[i]} was to sample: {due}; its token is {token_id} and it has no "
                "error"
            )
