"""Who computes how many tokens in the next step, and what a step's tokens mean for each request.

There is no prefill phase and no decode phase: every request has `num_computed` tokens chasing
those it has, under one budget of tokens for a step. A step may be scheduled while the one before it
runs: the token that a request gets from there is pending then, and is computed without being known.
"""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left, insort
from dataclasses import dataclass
from operator import attrgetter

from dropless.engine import long_prompts
from dropless.engine.fair_share import FairQueue, Turn
from dropless.engine.kv_cache import KVCache
from dropless.engine.long_prompts import LongPrompts, Pace
from dropless.engine.messages import TokenDelta
from dropless.engine.request import NO_ROW, Request
from dropless.engine.step import StepInput, StepResult
from dropless.engine.step_plan import StepPlan
from dropless.errors import DroplessError, EngineError

_ORDER = attrgetter("order")
_CHUNK_SHARE = 4  # a step beside others has this part of the budget for a long prompt
_FEW_SHARE = 4  # long prompts are few if at most this part of those who generate, or one


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
    """A step and whose rows those are: `requests[i]` runs in `input.rows[i]`. `can_run_on` tells
    whether the next step may be scheduled before the result of this one is known."""

    number: int
    requests: list[Request]
    input: StepInput
    can_run_on: bool
    has_decodes: bool
    has_long_prompt: bool


class Scheduler:
    """Requests in the order of priority, then arrival: both those that run and those that wait.

    A step takes first the running requests that have one token to compute, then other running
    ones, then waiting ones as long as the next fits. Where there are several owners, prompts of the
    one who was served least go first, running or not, and an owner within its share of the rows has
    others preempted rather than wait for them (`dropless.engine.fair_share`). Beside few long
    prompts those who generate keep their pace (`dropless.engine.long_prompts`): a long prompt gets
    a part of the budget in some steps, and is passed over in the others. If long prompts are many,
    or nobody generates, they leave only a part of the budget to others. When a running request
    finds no free block, the last of the running ones is preempted, or one of an owner beyond its
    share: it waits again, keeps its tokens and is computed anew later. The last itself just stands
    still. So the first of all always advances, and whoever can fit alone ends some day; a long
    prompt that is passed over, after a bounded number of steps.

    Steps are updated in the order in which they are scheduled, at most one of them late. Blocks may
    be given away while a step still uses them, because the device runs steps one after the other.
    """

    def __init__(
        self,
        cache: KVCache,
        *,
        max_running_requests: int,
        step_token_budget: int,
        long_prompts: LongPrompts = long_prompts.DEFAULT,
    ) -> None:
        self.counters = Counters()
        self._cache = cache
        self._budget = step_token_budget
        # Each running request can have a token in every step.
        self._max_running = min(max_running_requests, step_token_budget)
        self._long_tokens = long_prompts.tokens
        self._pace = Pace(long_prompts.slowdown)
        self._long: set[Request] = set()  # whose prompt is long and not computed
        self._live: dict[str, Request] = {}
        self._running: list[Request] = []
        self._waiting = FairQueue(self._max_running, step_token_budget)
        self._free_rows = list(range(self._max_running - 1, -1, -1))
        self._freed_rows: list[int] = []  # the runner has not been told of these
        self._num_steps = 0

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

    def may_join(self, owner: str, priority: int, weight: float) -> bool:
        """Whether this owner would be within its share of the rows with one more request."""
        return self._waiting.may_join(owner, priority, weight)

    def add(self, request: Request) -> None:
        """Let a request wait for its turn. Alone in the cache it must fit."""
        self._live[request.request_id] = request
        self._waiting.add(request)
        self._note_length(request)

    def abort(self, request_id: str) -> TokenDelta | None:
        """End a request. Returns its last delta, or None if there is no such request any more."""
        request = self._live.get(request_id)
        if request is None:
            return None
        self._end(request)
        return request.aborted()

    def preempt_all(self) -> None:
        """Let everything that runs wait again, as after a step whose outcome is unknown. Steps that
        are not updated yet never may be."""
        for request in self._live.values():
            request.drop_pending()
        while self._running:
            self._preempt(self._running[-1])
        self._freed_rows = list(self._free_rows)  # what that step told the runner may be lost
        self._pace.reset()

    def resize_steps(self, step_token_budget: int) -> None:
        """Change the budget from the next step on, to at most the one in the beginning. A smaller
        one must not come while more requests run than it has tokens."""
        self._budget = step_token_budget

    def lose(self, step: ScheduledStep, most: int, error: DroplessError) -> list[TokenDelta]:
        """A step has failed; everything waits again. Ends requests that have lost more than `most`
        steps since their last token. Returns their last deltas."""
        deltas = []
        for request in step.requests:
            request.num_lost_steps += 1
            if request.num_lost_steps > most and not request.ended:
                self._end(request)
                deltas.append(request.failed(error))
        return deltas

    def schedule(self) -> ScheduledStep | None:
        """The next step; all blocks that it needs are taken. None if there is nothing to compute:
        no request is live, or what is pending must come first."""
        self._num_steps += 1
        plan = StepPlan(self._budget)
        self._waiting.begin_step()
        self._schedule_running(plan)
        self._schedule_waiting(plan)
        if not plan.decodes and not plan.chunks:
            return None
        return self._make_step(plan)

    def update(self, step: ScheduledStep, result: StepResult) -> list[TokenDelta]:
        """Take in the outcome of the oldest step. Returns a delta for each request that got a token
        or ended.

        Raises:
            EngineError: the result does not belong to the step; nothing has changed then.
        """
        _check(step.input, result)
        self._take_prompt_logprobs(step, result)
        deltas = []
        errors, finished = result.errors, result.grammar_finished
        block_size = self._cache.block_size
        outcomes = zip(
            step.requests,
            step.input.num_computed,
            step.input.num_tokens,
            result.token_ids,
            result.logprobs,
            strict=True,
        )
        for i, (request, computed, num_tokens, token_id, logprob) in enumerate(outcomes):
            if request.ended:
                continue
            computed += num_tokens
            filled = num_tokens > 1 or computed % block_size == 0
            if filled and step.number >= request.started_in:
                self._cache.register(request, computed)
            if i in errors:
                delta = request.failed(errors[i])
            elif token_id is not None:
                delta = request.accept(token_id, logprob, grammar_finished=i in finished)
                self.counters.generated_tokens += 1
            else:
                continue
            deltas.append(delta)
            if delta.finish_reason is not None:
                self._end(request)
        return deltas

    def note_time(self, step: ScheduledStep, seconds: float) -> None:
        """The oldest step has ended so long after the one before it, or after its own launch."""
        if step.has_decodes:
            self._pace.took(seconds, has_long_prompt=step.has_long_prompt)

    def _take_prompt_logprobs(self, step: ScheduledStep, result: StepResult) -> None:
        """Not those of a request that lost its row meanwhile: it computes them again, unless its
        prompt is through."""
        for i, entries in result.prompt_logprobs.items():
            request = step.requests[i]
            wanted = step.number >= request.started_in or step.input.sample[i]
            if wanted and request.prompt_logprobs is not None:
                request.prompt_logprobs += entries

    def _schedule_running(self, plan: StepPlan) -> None:
        longer = []
        block_size = self._cache.block_size
        for request in self._running.copy():
            if request.row == NO_ROW:  # preempted meanwhile
                continue
            num_computed = request.num_computed
            num_pending = request.num_pending
            if len(request.token_ids) + num_pending - num_computed > 1:
                longer.append(request)
            elif num_pending and request.ends_with_pending:
                continue
            elif num_computed < len(request.blocks) * block_size or self._make_room(
                request, 1, plan
            ):
                plan.decodes.append(request)
        plan.budget = self._budget - len(plan.decodes)
        plan.long_budget = self._long_budget(len(plan.decodes), plan.budget)
        waiting = self._waiting
        if waiting.is_shared:
            longer.sort(key=self._turn)
        for request in longer:
            if request.row != NO_ROW:
                plan.promise(request, self._cache.num_missing(request))
        for request in longer:
            if waiting.is_shared:
                self._schedule_waiting(plan, self._turn(request))
            if request.row == NO_ROW:
                continue
            wanted = self._wanted(request, plan)
            granted = self._make_room(request, wanted, plan) if wanted else 0
            if granted:
                self._add_chunk(request, granted, plan)

    def _turn(self, request: Request) -> Turn:
        return self._waiting.turn(request, is_long=request in self._long)

    def _schedule_waiting(self, plan: StepPlan, before: Turn | None = None) -> None:
        """Start waiting requests in order, those whose turn is `before` another's. Who finds no
        blocks is not passed over, or it might wait forever; a long prompt is while it must stand
        still. Who was preempted in this step may start again in it, if others have the same prefix;
        but no one whose pending token must come along."""
        waiting = self._waiting
        while (plan.budget or waiting.is_shared) and (request := waiting.first()) is not None:
            if request.num_pending or (before is not None and waiting.turn(request) >= before):
                return
            if plan.long_budget or request not in self._long:
                self._note_length(request)  # its beginning may be known by now, or no longer
            if not plan.long_budget and request in self._long:
                waiting.pass_over(request)
                continue
            if not self._wanted(request, plan) or not self._start(request, plan):
                return
            wanted = self._wanted(request, plan)  # its beginning may be computed by now
            waiting.take(request)
            insort(self._running, request, key=_ORDER)
            if request.scheduled_time == 0.0:
                self._count_start(request)
            plan.new_requests.append(request.start(self._free_rows.pop(), self._num_steps))
            self._add_chunk(request, self._cache.grow(request, wanted), plan)

    def _start(self, request: Request, plan: StepPlan) -> bool:
        """Give a waiting request its known prefix, if there is a row for it and blocks. Others are
        left what their prompts need, and a block each to grow into, or they would preempt it soon.
        """
        reserve = len(self._running) + plan.promised_blocks
        has_row = self._free_rows and len(self._running) < self._budget  # which was larger once
        if has_row and self._cache.start(request, reserve):
            return True
        if not self._waiting.is_shared or request.has_displaced:
            return False
        victims = self._victims(request, reserve)
        for victim in victims:
            self._preempt(victim, plan)
        request.has_displaced = bool(victims)
        reserve = len(self._running) + plan.promised_blocks
        return request.has_displaced and self._cache.start(request, reserve)

    def _victims(self, request: Request, reserve: int) -> list[Request]:
        """Whom to preempt so that a waiting request can start; none if they would not do."""
        others = (other for other in self._running if other.started_in < self._num_steps)
        needed = self._cache.num_needed(request)
        lacking = reserve + needed - self._cache.num_free
        victims: list[Request] = []
        if lacking <= 0:
            one_row = self._waiting.for_start(request, others, lambda _: 1, 1)
            return list(itertools.islice(one_row, 1))
        for victim in self._waiting.for_start(request, others, self._cache.num_own, needed):
            victims.append(victim)
            lacking -= self._cache.num_own(victim) + 1  # none is left for it to grow into
            if lacking <= 0:
                return victims
        return []

    def _long_budget(self, num_decodes: int, budget: int) -> int:
        """How many of the `budget` tokens left beside so many decodes long prompts may have."""
        part = self._budget // _CHUNK_SHARE
        if num_decodes and len(self._long) <= max(1, num_decodes // _FEW_SHARE):
            return 0 if self._pace.holds else max(1, part - num_decodes)
        has_others = len(self._live) > len(self._long) + num_decodes
        return max(1, budget - part) if has_others else budget

    def _wanted(self, request: Request, plan: StepPlan) -> int:
        """How many of its tokens the step has room for. Beside a prompt of an owner within its
        share there is none for those who are not: its first token comes as soon as it can. And it
        has its part of the budget at least, while requests of others that generate stand still."""
        wanted = len(request.token_ids) - request.num_computed
        room = plan.budget
        if self._waiting.is_shared:
            is_within = request.share.is_within
            if not is_within and plan.is_quiet(request):
                return 0
            if is_within and room < wanted:
                part = self._waiting.part_of(request.share, self._budget)
                if room < part:
                    plan.spare = self._may_stand_still(request, plan)
                    room = min(part, room + len(plan.spare))
        if request in self._long:
            room = min(room, plan.long_budget)
        return min(room, wanted)

    def _may_stand_still(self, request: Request, plan: StepPlan) -> list[Request]:
        """Of those in the step who generate, whoever may be left out of it for a prompt: whose turn
        is later."""
        turn = self._waiting.turn(request)
        return [
            other
            for other in plan.decodes
            if not other.share.is_within
            and other.started_in < self._num_steps
            and self._waiting.turn(other) > turn
        ]

    def _add_chunk(self, request: Request, num_tokens: int, plan: StepPlan) -> None:
        plan.add(request, num_tokens)
        plan.promise(request, self._cache.num_missing(request))
        if self._waiting.is_shared:
            self._waiting.charge(request, num_tokens)
            if request.share.is_within:
                plan.keep_quiet(request)
            if plan.budget < 0:
                plan.leave_out_spare()
        if request in self._long:
            plan.long_budget -= num_tokens
            plan.has_long_prompt = True

    def _note_length(self, request: Request) -> None:
        """Whether its prompt is long: what is not yet known of it. Who has begun to generate is not
        held back when it must be computed anew."""
        num_tokens = len(request.token_ids) - request.num_computed
        is_long = num_tokens > self._long_tokens and not request.has_output
        if is_long and not request.blocks:
            is_long = num_tokens - self._cache.num_known(request) > self._long_tokens
        if is_long:
            self._long.add(request)
        else:
            self._long.discard(request)

    def _count_start(self, request: Request) -> None:
        request.scheduled_time = time.time()
        request.num_cached_tokens = request.num_computed
        self.counters.prompt_tokens += request.num_prompt_tokens
        self.counters.prefix_hit_tokens += request.num_computed

    def _make_room(self, request: Request, num_tokens: int, plan: StepPlan) -> int:
        """How many of its next `num_tokens` a running request can compute. Others are preempted
        only to make that more than none."""
        while True:
            granted = self._cache.grow(request, num_tokens)
            if granted:
                return granted
            victim = self._waiting.for_growth(request, self._running, self._cache.num_own)
            if victim is request:
                return 0
            self._preempt(victim, plan)

    def _preempt(self, request: Request, plan: StepPlan | None = None) -> None:
        if plan is not None:
            plan.remove(request)
        del self._running[bisect_left(self._running, request.order, key=_ORDER)]
        self._release(request)
        self._waiting.put_back(request)
        self._note_length(request)
        self.counters.preemptions += 1

    def _end(self, request: Request) -> None:
        request.ended = True
        del self._live[request.request_id]
        self._long.discard(request)
        self.counters.finished_requests += 1
        is_running = request.row != NO_ROW
        self._waiting.discard(request, was_running=is_running)
        if is_running:
            del self._running[bisect_left(self._running, request.order, key=_ORDER)]
            self._release(request)

    def _release(self, request: Request) -> None:
        self._free_rows.append(request.row)
        self._freed_rows.append(request.row)
        self._cache.release(request)
        request.reset()

    def _make_step(self, plan: StepPlan) -> ScheduledStep:
        requests = [*plan.decodes, *plan.chunks]
        num_tokens = [1] * len(plan.decodes) + list(plan.chunks.values())
        if self._waiting.is_shared:
            self._waiting.charge_each(plan.decodes)
        num_computed = [request.num_computed for request in requests]
        step = StepInput(
            rows=[request.row for request in requests],
            num_computed=num_computed,
            num_tokens=num_tokens,
            new_blocks=[_handed_over(request) for request in requests],
            sample=[
                _advance(request, count)
                for request, count in zip(requests, num_tokens, strict=True)
            ],
            new_requests=plan.new_requests,
            freed_rows=self._freed_rows,
        )
        self._freed_rows = []
        if self._long:
            self._long.difference_update(itertools.compress(requests, step.sample))
        has_decodes = bool(plan.decodes)
        if has_decodes:
            self._pace.scheduled(has_long_prompt=plan.has_long_prompt)
        waited_for = any(
            sampled and request.follows_output
            for request, sampled in zip(requests, step.sample, strict=True)
        )
        return ScheduledStep(
            self._num_steps,
            requests,
            step,
            can_run_on=not waited_for,
            has_decodes=has_decodes,
            has_long_prompt=plan.has_long_prompt,
        )


def _handed_over(request: Request) -> list[int]:
    blocks, request.new_blocks = request.new_blocks, []
    return blocks


def _advance(request: Request, count: int) -> bool:
    """Count `count` more tokens as computed; whether that leads to a new one, which is pending."""
    request.num_computed += count
    due = request.num_computed == len(request.token_ids) + request.num_pending
    request.num_pending += due
    return due


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
