"""Who is in a step, with how many tokens, and who has to wait."""

from __future__ import annotations

import itertools

import pytest

from dropless.engine.kv_cache import KVCache
from dropless.engine.messages import TokenDelta, TokenLogprob
from dropless.engine.request import Request
from dropless.engine.sampling_params import SamplingParams
from dropless.engine.scheduler import ScheduledStep, Scheduler
from dropless.engine.step import StepResult
from dropless.errors import EngineError

BLOCK = 4
_arrivals = itertools.count()
_tokens = itertools.count(1000)


def make_request(name: str, num_prompt: int, *, output: int = 50, priority: int = 0) -> Request:
    """All of one owner, and of different prompts, so that nothing of them is shared."""
    arrival = next(_arrivals)
    return Request(
        request_id=name,
        owner="ada",
        order=(-priority, arrival),
        params=SamplingParams(max_tokens=output),
        seed=7,
        token_ids=[2_000_000 + arrival] * num_prompt,
        num_prompt_tokens=num_prompt,
        max_len=num_prompt + output,
        end_token_ids=frozenset(),
    )


def make_cache(num_blocks: int) -> KVCache:
    return KVCache(num_blocks, BLOCK, prefix_caching=True)


def make_scheduler(
    *, cache: KVCache | None = None, blocks: int = 100, rows: int = 8, budget: int = 16
) -> Scheduler:
    cache = cache or make_cache(blocks)
    return Scheduler(cache, max_running_requests=rows, step_token_budget=budget)


def add(scheduler: Scheduler, *requests: Request) -> None:
    for request in requests:
        scheduler.add(request)


def next_step(scheduler: Scheduler) -> ScheduledStep:
    step = scheduler.schedule()
    assert step is not None
    return step


def answer(scheduler: Scheduler, step: ScheduledStep) -> list[TokenDelta]:
    """As a model does: a new token wherever one is due."""
    tokens = [next(_tokens) if due else None for due in step.input.sample]
    return scheduler.update(step, StepResult(tokens, [None] * len(tokens)))


def run(scheduler: Scheduler, steps: int = 1) -> list[dict[str, int]]:
    """Tokens of each request in each step, in the order of the rows."""
    seen = []
    for _ in range(steps):
        step = next_step(scheduler)
        names = [request.request_id for request in step.requests]
        seen.append(dict(zip(names, step.input.num_tokens, strict=True)))
        answer(scheduler, step)
    return seen


def test_a_long_prompt_is_computed_in_chunks_and_sampled_once_at_its_end() -> None:
    scheduler = make_scheduler(budget=16)
    scheduler.add(make_request("long", 40))
    steps = []
    for _ in range(4):
        step = next_step(scheduler)
        steps.append((step.input.num_computed, step.input.num_tokens, step.input.sample))
        deltas = answer(scheduler, step)
        assert len(deltas) == step.input.sample.count(True)
    assert steps == [
        ([0], [16], [False]),
        ([16], [16], [False]),
        ([32], [8], [True]),
        ([40], [1], [True]),
    ]


def test_decodes_go_first_then_running_prompts_then_waiting_ones() -> None:
    scheduler = make_scheduler(budget=16)
    add(scheduler, make_request("a", 3), make_request("b", 30), make_request("c", 30))
    assert run(scheduler, 4) == [
        {"a": 3, "b": 13},
        {"a": 1, "b": 15},
        {"a": 1, "b": 2, "c": 13},
        {"a": 1, "b": 1, "c": 14},
    ]


def test_rows_with_one_token_stand_first_whatever_they_are() -> None:
    scheduler = make_scheduler(budget=16)
    add(scheduler, make_request("two", 2), make_request("one", 1), make_request("rest", 30))
    [step] = run(scheduler)
    assert list(step.items()) == [("one", 1), ("two", 2), ("rest", 13)]
    step = next_step(scheduler).input
    assert step.num_tokens == [1, 1, 14]


def test_higher_priority_starts_first_then_whoever_came_first() -> None:
    scheduler = make_scheduler(rows=1)
    names = {"low": -1, "first": 0, "second": 0, "high": 5}
    for name, priority in names.items():
        scheduler.add(make_request(name, 4, output=1, priority=priority))
    order = [next(iter(step)) for step in run(scheduler, 4)]
    assert order == ["high", "first", "second", "low"]


def test_a_long_prompt_is_not_passed_over_by_a_short_one() -> None:
    scheduler = make_scheduler(blocks=10, budget=64)
    add(scheduler, make_request("a", 24, output=3), make_request("long", 30))
    add(scheduler, make_request("short", 2))
    assert run(scheduler, 4) == [{"a": 24}, {"a": 1}, {"a": 1}, {"long": 30, "short": 2}]


def test_no_more_run_than_have_rows() -> None:
    scheduler = make_scheduler(rows=2)
    add(scheduler, *(make_request(name, 2, output=2) for name in "abc"))
    assert run(scheduler, 3) == [{"a": 2, "b": 2}, {"a": 1, "b": 1}, {"c": 2}]


def test_no_more_run_than_the_budget_has_tokens() -> None:
    scheduler = make_scheduler(budget=2)
    add(scheduler, *(make_request(name, 1) for name in "abc"))
    assert run(scheduler, 2) == [{"a": 1, "b": 1}] * 2


def test_without_a_free_block_the_youngest_makes_room_and_loses_nothing() -> None:
    cache = make_cache(6)
    scheduler = make_scheduler(cache=cache, budget=32)
    old, young = make_request("old", 7, output=9), make_request("young", 7, output=8)
    add(scheduler, old, young)
    run(scheduler, 3)  # both fill their two blocks, then take a third each
    assert cache.num_free == 0
    assert run(scheduler, 4) == [{"old": 1, "young": 1}] * 3 + [{"old": 1}]
    assert scheduler.counters.preemptions == 1
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    assert young.row == -1
    assert young.blocks == []
    tokens = list(young.token_ids)
    assert len(tokens) == 7 + 6

    seen = []
    while "young" in scheduler:
        step = next_step(scheduler)
        seen += step.input.new_requests
        answer(scheduler, step)
    [restart] = seen
    assert restart.token_ids == tokens
    assert restart.num_prompt_tokens == 7
    assert restart.seed == young.seed
    assert young.token_ids[: len(tokens)] == tokens
    assert len(young.token_ids) == 7 + 8
    cache.check_all_free()


def test_the_row_of_a_preempted_request_is_freed_in_the_same_step() -> None:
    scheduler = make_scheduler(blocks=6, budget=32)
    add(scheduler, make_request("old", 7), make_request("young", 7))
    run(scheduler)
    young = next_step(scheduler)
    [row] = [r.row for r in young.requests if r.request_id == "young"]
    answer(scheduler, young)
    freed = []
    while scheduler.num_running == 2:
        step = next_step(scheduler)
        freed = step.input.freed_rows
        answer(scheduler, step)
    assert freed == [row]
    assert next_step(scheduler).input.freed_rows == []


def test_lower_priority_is_preempted_before_a_later_arrival() -> None:
    scheduler = make_scheduler(blocks=9, budget=64)
    low = make_request("low", 7, priority=-1)
    add(scheduler, low, make_request("first", 7), make_request("second", 7))
    while not scheduler.counters.preemptions:
        run(scheduler)
    assert low.row == -1
    assert scheduler.num_running == 2


def test_preempted_requests_come_back_in_order_before_those_that_never_ran() -> None:
    scheduler = make_scheduler(blocks=9, rows=3, budget=64)
    add(scheduler, *(make_request(name, 7, output=22) for name in "abcd"))
    started: list[str] = []
    while "d" in scheduler:
        step = next_step(scheduler)
        started += [new.request_id for new in step.input.new_requests]
        answer(scheduler, step)
    assert scheduler.counters.preemptions >= 2
    assert [name for i, name in enumerate(started) if name not in started[:i]] == list("abcd")
    restarts = started[3:]
    assert restarts.index("b") < restarts.index("c") < restarts.index("d")


def test_nobody_is_preempted_to_let_another_start() -> None:
    scheduler = make_scheduler(blocks=8, budget=64)
    low = make_request("low", 20, output=4, priority=-1)
    scheduler.add(low)
    run(scheduler)
    scheduler.add(make_request("high", 20, priority=5))
    assert run(scheduler, 4) == [{"low": 1}, {"low": 1}, {"low": 1}, {"high": 20}]
    assert scheduler.counters.preemptions == 0


def test_a_start_leaves_the_running_ones_a_block_to_grow_into() -> None:
    scheduler = make_scheduler(blocks=7, budget=64)
    scheduler.add(make_request("a", 8, output=5))
    run(scheduler)
    scheduler.add(make_request("b", 16))  # four blocks, and four will be free
    assert run(scheduler, 5) == [{"a": 1}] * 4 + [{"b": 16}]


def test_the_youngest_stands_still_rather_than_lose_its_work() -> None:
    scheduler = make_scheduler(blocks=7, budget=16)
    add(scheduler, make_request("old", 8, output=5), make_request("young", 14))
    assert run(scheduler, 2) == [{"old": 8, "young": 8}, {"old": 1, "young": 6}]
    assert run(scheduler, 4) == [{"old": 1, "young": 1}] * 2 + [{"old": 1}, {"young": 1}]
    assert scheduler.counters.preemptions == 0


def test_a_prompt_is_computed_as_far_as_there_are_blocks() -> None:
    cache = make_cache(10)
    scheduler = make_scheduler(cache=cache, budget=20)
    scheduler.add(make_request("decoding", 8))
    run(scheduler)
    scheduler.add(make_request("long", 22))
    assert run(scheduler) == [{"decoding": 1, "long": 19}]
    hog = make_request("hog", 8)
    assert cache.start(hog, reserve=0)
    assert cache.grow(hog, 8) == 8
    assert run(scheduler, 2) == [{"decoding": 1, "long": 1}, {"decoding": 1}]
    cache.release(hog)
    assert run(scheduler) == [{"decoding": 1, "long": 2}]
    assert scheduler.counters.preemptions == 0


def test_whoever_is_preempted_leaves_the_step_it_was_in() -> None:
    cache = make_cache(8)
    scheduler = make_scheduler(cache=cache, budget=8)
    scheduler.add(make_request("low", 7))
    run(scheduler)
    scheduler.add(make_request("high", 20, priority=5))
    assert run(scheduler, 2) == [{"low": 1, "high": 7}] * 2
    hog = make_request("hog", 4)
    assert cache.start(hog, reserve=0)
    assert cache.grow(hog, 4) == 4
    assert cache.num_free == 0
    assert run(scheduler, 2) == [{"low": 1, "high": 2}, {"high": 4}]
    assert scheduler.num_waiting == 1


def test_a_prompt_under_way_is_preempted_for_a_decode_before_it() -> None:
    cache = make_cache(9)
    scheduler = make_scheduler(cache=cache, budget=4)
    scheduler.add(make_request("old", 4))
    run(scheduler)
    scheduler.add(make_request("long", 20))
    assert run(scheduler) == [{"old": 1, "long": 3}]
    hog = make_request("hog", 24)
    assert cache.start(hog, reserve=0)
    assert cache.grow(hog, 24) == 24
    assert cache.num_free == 0
    assert run(scheduler, 4) == [{"old": 1, "long": 1}, {"old": 1}, {"old": 1}, {"old": 1}]
    assert scheduler.num_waiting == 1
    cache.release(hog)
    assert run(scheduler) == [{"old": 1, "long": 3}]


def test_several_may_have_more_than_one_token_to_go() -> None:
    cache = make_cache(6)
    scheduler = make_scheduler(cache=cache, budget=32)
    requests = [make_request("old", 8), make_request("young", 8)]
    add(scheduler, *requests)
    run(scheduler)
    for request in requests:
        request.token_ids += [0] * 7
    hog = make_request("hog", 8)
    assert cache.start(hog, reserve=0)
    assert cache.grow(hog, 8) == 8
    assert run(scheduler) == [{"old": 8}]
    assert scheduler.num_waiting == 1


def test_freed_rows_are_told_before_they_are_given_away_again() -> None:
    scheduler = make_scheduler(rows=1)
    add(scheduler, make_request("a", 2, output=1), make_request("b", 2, output=1))
    first = next_step(scheduler)
    assert first.input.freed_rows == []
    answer(scheduler, first)
    second = next_step(scheduler)
    assert second.input.freed_rows == first.input.rows
    assert [new.row for new in second.input.new_requests] == first.input.rows


def test_aborting_ends_waiting_and_running_requests() -> None:
    cache = make_cache(8)
    scheduler = make_scheduler(cache=cache, rows=1)
    add(scheduler, make_request("runs", 8), make_request("waits", 8))
    run(scheduler)
    for name in ("waits", "runs"):
        delta = scheduler.abort(name)
        assert delta is not None
        assert (delta.request_id, delta.finish_reason) == (name, "abort")
        assert scheduler.abort(name) is None
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
    cache.check_all_free()


def test_what_ran_waits_again_after_preempt_all() -> None:
    cache = make_cache(8)
    scheduler = make_scheduler(cache=cache)
    add(scheduler, make_request("a", 5), make_request("b", 5))
    run(scheduler, 3)
    next_step(scheduler)
    scheduler.preempt_all()
    cache.check_all_free()
    step = next_step(scheduler)
    assert [len(new.token_ids) for new in step.input.new_requests] == [8, 8]
    assert [new.request_id for new in step.input.new_requests] == ["a", "b"]
    assert sorted(step.input.freed_rows) == [*range(8)], "whatever the runner held, it forgets"


# A step that is scheduled while the one before it runs


def outcome(step: ScheduledStep, entries: dict[int, list[TokenLogprob | None]]) -> StepResult:
    """A token wherever one is due, and these log probabilities of prompts."""
    tokens = [next(_tokens) if due else None for due in step.input.sample]
    return StepResult(tokens, [None] * len(tokens), entries)


def entries(*token_ids: int) -> list[TokenLogprob | None]:
    return [TokenLogprob(token_id, -1.0, []) for token_id in token_ids]


def scoring(name: str, num_prompt: int) -> Request:
    """A request that asks for the log probabilities of its prompt."""
    request = make_request(name, num_prompt)
    request.prompt_logprobs = []
    return request


def take_all_blocks(cache: KVCache) -> None:
    hog = make_request("hog", cache.num_free * BLOCK)
    assert cache.start(hog, reserve=0)
    cache.grow(hog, cache.num_free * BLOCK)


def test_a_token_on_its_way_is_computed_before_it_is_known() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 6, output=3))
    first, second, third = (next_step(scheduler) for _ in range(3))
    assert [step.input.num_computed for step in (first, second, third)] == [[0], [6], [7]]
    assert all(step.input.sample == [True] for step in (first, second, third))
    assert scheduler.schedule() is None, "what is on its way fills it up"
    reasons = [answer(scheduler, step)[0].finish_reason for step in (first, second, third)]
    assert reasons == [None, None, "length"]


@pytest.mark.parametrize("fails", [False, True], ids=["arrives", "is-lost"])
def test_whoever_is_preempted_with_a_token_on_its_way_gets_it_once(fails: bool) -> None:
    cache = make_cache(8)
    scheduler = make_scheduler(cache=cache, budget=32)
    old, young = make_request("old", 4), scoring("young", 3)
    young.prompt_logprobs = [None, *entries(5)]  # of a chunk before
    add(scheduler, old, young)
    flying = next_step(scheduler)
    take_all_blocks(cache)
    behind = next_step(scheduler)
    assert behind.requests == [old]
    assert (young.row, young.num_pending) == (-1, 1)
    if fails:
        scheduler.preempt_all()
        assert (young.num_pending, young.prompt_logprobs) == (0, [])
        return
    i = flying.requests.index(young)
    deltas = scheduler.update(flying, outcome(flying, {i: entries(6)}))
    [mine] = [delta for delta in deltas if delta.request_id == "young"]
    assert mine.new_token_ids == young.token_ids[3:]
    assert mine.prompt_logprobs == [None, *entries(5, 6)]
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    assert [delta.request_id for delta in answer(scheduler, behind)] == ["old"]


def make_twins(*num_prompt: int) -> list[Request]:
    """Requests that share the prefix of their prompts, once it is computed."""
    twins = [make_request(f"twin {i}", count) for i, count in enumerate(num_prompt)]
    for twin in twins:
        twin.token_ids = [0] * twin.num_prompt_tokens
    return twins


def test_nobody_starts_again_before_a_token_on_its_way_has_come() -> None:
    scheduler = make_scheduler(blocks=6, budget=32)
    old, young = make_twins(8, 8)
    add(scheduler, old, young)
    flying = next_step(scheduler)
    for _ in range(4):
        behind = next_step(scheduler)
        answer(scheduler, flying)
        flying = behind
    behind = next_step(scheduler)  # the old one needs a block, the young one finds its prefix
    assert behind.requests == [old]
    assert (young.row, young.num_pending, len(young.token_ids)) == (-1, 1, 12)
    answer(scheduler, flying)
    scheduler.abort("twin 0")
    [restart] = next_step(scheduler).input.new_requests
    assert len(restart.token_ids) == 13


def test_who_starts_again_at_once_offers_no_blocks_for_what_it_lost() -> None:
    cache = make_cache(12)
    scheduler = make_scheduler(cache=cache, budget=15)
    old, young = make_twins(11, 20)
    add(scheduler, old, young)
    assert run(scheduler) == [{"twin 0": 11, "twin 1": 4}]
    flying = next_step(scheduler)
    assert flying.input.num_tokens == [1, 14]
    take_all_blocks(cache)
    behind = next_step(scheduler)
    assert [new.request_id for new in behind.input.new_requests] == ["twin 1"]
    answer(scheduler, flying)
    assert young.num_registered == 2, "what it shares; the rest is not computed yet"
    answer(scheduler, behind)
    assert young.num_registered == 5


def test_a_part_of_a_prompt_that_was_lost_is_not_scored_twice() -> None:
    cache = make_cache(8)
    scheduler = make_scheduler(cache=cache, budget=8)
    old, long = make_request("old", 4), scoring("long", 20)
    add(scheduler, old, long)
    flying = next_step(scheduler)
    take_all_blocks(cache)
    behind = next_step(scheduler)
    assert behind.requests == [old]
    assert long.row == -1
    i = flying.requests.index(long)
    scheduler.update(flying, outcome(flying, {i: [None, *entries(1, 2, 3)]}))
    assert long.prompt_logprobs == []


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (StepResult([1], [None]), "2 rows came back with 1 tokens"),
        (StepResult([1, 1], [None]), "and 1 log probabilities"),
        (StepResult([None, None], [None, None]), r"row 0 was to sample: True; its token is None"),
        (StepResult([1, 1], [None, None]), r"row 1 was to sample: False; its token is 1"),
    ],
    ids=["rows", "logprobs", "no-token", "unasked-token"],
)
def test_a_result_of_another_step_changes_nothing(result: StepResult, message: str) -> None:
    scheduler = make_scheduler(budget=16)
    requests = [make_request("short", 2), make_request("long", 40)]
    add(scheduler, *requests)
    step = next_step(scheduler)
    with pytest.raises(EngineError, match=message):
        scheduler.update(step, result)
    assert [request.num_pending for request in requests] == [1, 0]
    assert [request.num_registered for request in requests] == [0, 0]
    assert [len(request.token_ids) for request in requests] == [2, 40]
