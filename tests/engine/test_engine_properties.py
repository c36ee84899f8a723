"""Whatever arrives, in whatever order, on whatever small cache: each request gets exactly what it
would get alone, and nothing is left behind."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from dropless.engine.messages import EngineRequest, TokenDelta, TokenLogprob
from dropless.engine.sampling_params import SamplingParams
from dropless.engine.transport import to_error
from dropless.errors import ContextLengthError, GrammarError

from .simulated_device import ERROR_TEXT, logprob_of, make_engine, next_token, solo_output

OWNERS = ("", "", "ada", "bob")
STEMS = [[next_token([stem, place], 0) for place in range(24)] for stem in range(2)]

prompts = st.builds(
    lambda stem, length, tail: STEMS[stem][:length] + tail,
    st.sampled_from([0, 0, 0, 1]),
    st.integers(1, 24),
    st.just([]) | st.lists(st.integers(0, 63), max_size=6),
)
sampling = st.builds(
    SamplingParams,
    max_tokens=st.none() | st.integers(1, 24),
    seed=st.integers(0, 3),  # one that the engine draws would make examples irreproducible
    ignore_eos=st.booleans(),
    stop_token_ids=st.just(()) | st.just((7, 8)),
    logprobs=st.none() | st.just(0),
    prompt_logprobs=st.none() | st.none() | st.just(0),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.0, 1.0]),  # the next token waits for the last
)
arrivals = st.builds(
    EngineRequest,
    request_id=st.just(""),
    prompt_token_ids=prompts,
    params=sampling,
    owner=st.sampled_from(OWNERS),
    priority=st.sampled_from([0, 0, 0, 1, -1]),
    weight=st.sampled_from([1.0, 1.0, 0.1, 7.0]),
)


@dataclass
class Followed:
    """One request and all that came back for it."""

    request: EngineRequest
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    first_step: int | None = None
    times: tuple[float, int] = (0.0, 0)  # when first scheduled, cached tokens
    last: TokenDelta | None = None

    def push(self, delta: TokenDelta, step: int) -> None:
        assert self.last is None, "nothing follows the last delta"
        assert delta.new_token_ids or delta.finish_reason, "a delta tells something"
        if delta.prompt_logprobs is not None:
            assert self.first_step is None, "they come with the first token"
            self.prompt_logprobs = delta.prompt_logprobs
        if self.first_step is None:
            self.times = (delta.scheduled_time, delta.num_cached_tokens)
        assert self.times == (delta.scheduled_time, delta.num_cached_tokens)
        if self.first_step is None and delta.finish_reason != "abort":
            self.first_step = step
        self.token_ids += delta.new_token_ids
        self.logprobs += delta.logprobs or []
        if delta.finish_reason is not None:
            self.last = delta

    def check(self, seed: int | None, max_len: int, memory_was_short: bool) -> None:
        """The request has ended as if it had been alone, or there was no memory for it."""
        assert self.last is not None
        params, prompt = self.request.params, self.request.prompt_token_ids
        lacked_memory = self.last.error_kind == "OutOfMemoryError"
        assert memory_was_short or not lacked_memory
        if seed is None:  # it was never started
            assert self.token_ids == []
            assert lacked_memory or self.last.finish_reason == "abort"
            return
        assert params.seed == seed
        token_ids, reason, stop_token_id = solo_output(self.request, seed, max_len)
        if self.last.finish_reason == "abort" or lacked_memory:
            assert self.token_ids == token_ids[: len(self.token_ids)]
        else:
            assert self.token_ids == token_ids
            assert (self.last.finish_reason, self.last.stop_token_id) == (reason, stop_token_id)
            assert self.last.error == (ERROR_TEXT if reason == "error" else None)
            assert reason != "error" or type(to_error(self.last)) is GrammarError
        both = prompt + self.token_ids
        ends = range(len(prompt) + 1, len(both) + 1)
        asked = params.logprobs is not None
        assert self.logprobs == ([logprob_of(both[:n]) for n in ends] if asked else [])
        if params.prompt_logprobs is None:
            assert self.prompt_logprobs is None
        elif self.token_ids:
            known = [logprob_of(prompt[: n + 1]) for n in range(1, len(prompt))]
            assert self.prompt_logprobs == [None, *known]


class Traffic(RuleBasedStateMachine):
    """Requests arrive, run, are aborted; steps fail; at the end everything is run out."""

    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        num_blocks=st.integers(4, 40),
        max_model_len=st.integers(8, 48),
        rows=st.integers(1, 6),
        budget=st.integers(1, 24),
        prefix_caching=st.sampled_from([True, True, True, False]),
        overlaps=st.booleans(),
        long_prompt_tokens=st.sampled_from([1000, 1000, 1, 6]),
    )
    def make(
        self,
        block_size: int,
        num_blocks: int,
        max_model_len: int,
        rows: int,
        budget: int,
        prefix_caching: bool,
        overlaps: bool,
        long_prompt_tokens: int,
    ) -> None:
        self.max_len = min(max_model_len, num_blocks * block_size)
        self.prefix_caching = prefix_caching
        self.engine, self.device = make_engine(
            num_blocks=num_blocks,
            block_size=block_size,
            max_model_len=max_model_len,
            max_running_requests=rows,
            step_token_budget=budget,
            prefix_caching=prefix_caching,
            overlaps=overlaps,
            long_prompt_tokens=long_prompt_tokens,
        )
        self.long_prompt_tokens = long_prompt_tokens
        self.followed: list[Followed] = []
        self.by_id: dict[str, Followed] = {}
        self.num_steps = 0
        self.memory_was_short = False

    @rule(arrivals=st.lists(arrivals, min_size=1, max_size=6))
    def submit(self, arrivals: list[EngineRequest]) -> None:
        for arrival in arrivals:
            request_id = str(len(self.followed))
            request = msgspec.structs.replace(arrival, request_id=request_id)
            num_prompt = len(request.prompt_token_ids)
            if num_prompt >= self.max_len:
                with pytest.raises(ContextLengthError, match=f" {num_prompt} tokens"):
                    self.engine.add_request(request)
                continue
            self.device.owners[request_id] = request.owner
            self.engine.add_request(request)
            self.followed.append(Followed(request))
            self.by_id[request_id] = self.followed[-1]

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self._step()

    @precondition(lambda self: self.followed)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.followed), max_size=3))
        live = {each.request.request_id for each in chosen if each.last is None}
        deltas = self.engine.abort([each.request.request_id for each in chosen] + ["unknown"])
        assert {delta.request_id for delta in deltas} == live
        assert all(delta.finish_reason == "abort" for delta in deltas)
        self._push(deltas)

    @precondition(lambda self: self.engine.has_work())
    @rule(fail_at=st.sampled_from(["launch", "result"]))
    def step_that_fails(self, fail_at: Literal["launch", "result"]) -> None:
        self.device.memory_tokens = self.device.budget
        self.device.fail_at = fail_at
        self.device.fail_next = RuntimeError("a kernel failed")
        with pytest.raises(RuntimeError, match="a kernel failed"):
            self._step()
        assert self.engine.stats().running == 0
        self.engine.check_integrity()

    @rule(tokens=st.sampled_from([0, 1, 3, 24]))
    def memory_for_steps_of(self, tokens: int) -> None:
        self.device.memory_tokens = tokens
        self.memory_was_short |= tokens == 0

    @invariant()
    def stats_are_true(self) -> None:
        stats = self.engine.stats()
        live = [each for each in self.followed if each.last is None]
        assert stats.running + stats.waiting == len(live)
        assert stats.finished_requests == len(self.followed) - len(live)
        assert stats.generated_tokens == sum(len(each.token_ids) for each in self.followed)
        assert self.engine.has_work() or not live
        assert self.engine.has_work() == bool(live) or self.device.overlaps
        assert self.prefix_caching or stats.prefix_hit_tokens == 0
        if not live:
            assert stats.kv_blocks_free == stats.kv_blocks_total

    def teardown(self) -> None:
        limit = self.num_steps + sum(
            2 * (len(each.request.prompt_token_ids) + self.max_len) for each in self.followed
        )
        while self.engine.has_work():
            self._step()
            assert self.num_steps <= limit, "requests no longer advance"
        self.stats_are_true()
        self.engine.check_integrity()
        for each in self.followed:
            seed = self.device.seeds.get(each.request.request_id)
            each.check(seed, self.max_len, self.memory_was_short)
        hits = sum(each.times[1] for each in self.followed)
        assert self.engine.stats().prefix_hit_tokens == hits
        self._check_order()

    def _step(self) -> None:
        had_work = self.engine.has_work()
        deltas = self.engine.step()
        assert had_work or not deltas
        assert len({delta.request_id for delta in deltas}) == len(deltas)
        self.num_steps += 1
        self._push(deltas)

    def _push(self, deltas: list[TokenDelta]) -> None:
        for delta in deltas:
            self.by_id[delta.request_id].push(delta, self.num_steps)

    def _check_order(self) -> None:
        """Of an owner's requests whichever came first, and is no less important, gets its first
        token first, unless its prompt is long."""
        started = [each for each in self.followed if each.first_step is not None]
        for before, after in itertools.combinations(started, 2):
            if len(before.request.prompt_token_ids) > self.long_prompt_tokens:
                continue
            if before.request.owner != after.request.owner:
                continue
            if before.request.priority >= after.request.priority:
                assert before.first_step <= after.first_step


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=100,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
