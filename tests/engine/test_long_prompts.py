"""Long prompts beside requests that generate: nobody waits long, and nobody starves."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.engine.kv_cache import KVCache
from dropless.engine.long_prompts import LongPrompts, Pace
from dropless.engine.request import Request
from dropless.engine.sampling_params import SamplingParams
from dropless.engine.scheduler import ScheduledStep, Scheduler
from dropless.engine.step import StepInput, StepResult

BLOCK = 16
LONG = 32_768


def gpu_seconds(step: StepInput) -> float:
    """About one of eight ranks' slice of DBRX on an H100: few requests read few experts; beyond,
    each token costs its arithmetic, and its attention to what stands before it."""
    pairs = sum(
        computed * count for computed, count in zip(step.num_computed, step.num_tokens, strict=True)
    )
    tokens = sum(step.num_tokens)
    return 2e-3 + 10e-3 * (1.0 - 0.75**tokens) + 18e-6 * tokens + 0.4e-9 * pairs


@dataclass
class Simulation:
    """A scheduler, and a clock instead of a device."""

    scheduler: Scheduler
    seconds: Callable[[StepInput], float] = gpu_seconds
    overlaps: bool = True
    now: float = 0.0
    flying: deque[ScheduledStep] = field(default_factory=deque)
    token_times: dict[str, list[float]] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def add(self, name: str, num_prompt: int, output: int, owner: str | None = None) -> Request:
        """Requests of the same owner have the same prompt, as far as it goes."""
        order = next(self.numbers)
        request = Request(
            request_id=f"{name} {order}",
            owner=owner or str(order),
            order=(0, order),
            params=SamplingParams(max_tokens=output),
            seed=7,
            token_ids=[0] * num_prompt,
            num_prompt_tokens=num_prompt,
            max_len=num_prompt + output,
            end_token_ids=frozenset(),
        )
        self.token_times[request.request_id] = []
        self.scheduler.add(request)
        return request

    def step(self) -> ScheduledStep | None:
        """Take in the oldest step, with the next one scheduled before where that may be."""
        for _ in range(1 + self.overlaps - len(self.flying)):
            scheduled = self.scheduler.schedule()
            if scheduled is not None:
                self.flying.append(scheduled)
        if not self.flying:
            return None
        oldest = self.flying.popleft()
        taken = self.seconds(oldest.input)
        self.now += taken
        self.scheduler.note_time(oldest, taken)
        tokens = [1 if due else None for due in oldest.input.sample]
        for delta in self.scheduler.update(oldest, StepResult(tokens, [None] * len(tokens))):
            self.token_times[delta.request_id].append(self.now)
        return oldest

    def run(self, wanted: Callable[[], bool], most_steps: int = 100_000) -> None:
        for _ in range(most_steps):
            if wanted():
                return
            self.step()
        raise AssertionError("no end")

    def first_token_at(self, request: Request) -> float:
        self.run(lambda: bool(self.token_times[request.request_id]))
        return self.token_times[request.request_id][0]

    def time_per_token(self, request: Request, since: float, until: float) -> float:
        times = [at for at in self.token_times[request.request_id] if since <= at <= until]
        return (times[-1] - times[0]) / (len(times) - 1)


def simulate(
    *,
    budget: int = 8192,
    rows: int = 256,
    blocks: int = 40_000,
    overlaps: bool = True,
    seconds: Callable[[StepInput], float] = gpu_seconds,
    long_prompts: LongPrompts | None = None,
) -> Simulation:
    scheduler = Scheduler(
        KVCache(blocks, BLOCK, prefix_caching=True),
        max_running_requests=rows,
        step_token_budget=budget,
        long_prompts=long_prompts or LongPrompts(),
    )
    return Simulation(scheduler, seconds, overlaps)


def chats(simulation: Simulation, count: int, output: int) -> list[Request]:
    """Short requests, all of which generate already."""
    made = [simulation.add("chat", 100, output) for _ in range(count)]
    simulation.run(lambda: all(simulation.token_times[chat.request_id] for chat in made))
    return made


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("num_chats", [1, 4, 32])
def test_chats_keep_their_pace_beside_a_long_prompt(num_chats: int, overlaps: bool) -> None:
    simulation = simulate(overlaps=overlaps)
    talking = chats(simulation, num_chats, 4000)
    alone_from = simulation.now
    simulation.run(lambda: simulation.now > alone_from + 0.5)
    began = simulation.now
    ended = simulation.first_token_at(simulation.add("long", LONG, 1))
    for chat in talking:
        alone = simulation.time_per_token(chat, alone_from, began)
        beside = simulation.time_per_token(chat, began, ended)
        assert 1.05 * alone < beside < 1.17 * alone
    assert ended - began < 1.2 * prefill_seconds(LONG, 2048) / 0.15


def test_several_long_prompts_beside_many_chats_take_turns() -> None:
    simulation = simulate()
    talking = chats(simulation, 32, 8000)
    began = simulation.now
    longs = [simulation.add("long", LONG, 1) for _ in range(4)]
    ended = [simulation.first_token_at(long) for long in longs]
    assert ended == sorted(ended)
    assert ended[0] - began < 1.2 * prefill_seconds(LONG, 2048) / 0.15
    alone = gpu_seconds(decodes(32))
    for chat in talking:
        assert simulation.time_per_token(chat, began, ended[-1]) < 1.17 * alone


def test_a_chat_that_comes_while_a_long_prompt_is_computed_does_not_wait_for_it() -> None:
    for num_chats in (0, 8):
        simulation = simulate()
        chats(simulation, num_chats, 4000)
        long = simulation.add("long", LONG, 1)
        simulation.step()
        began = simulation.now
        assert simulation.first_token_at(simulation.add("chat", 400, 10)) - began < 0.5
        assert not simulation.token_times[long.request_id]


def test_alone_a_long_prompt_has_every_step_for_itself() -> None:
    simulation = simulate()
    ended = simulation.first_token_at(simulation.add("long", LONG, 1))
    assert ended == pytest.approx(prefill_seconds(LONG, 8192))


def test_a_prompt_is_as_long_as_what_is_not_known_of_it() -> None:
    simulation = simulate()
    chats(simulation, 1, 8000)
    simulation.first_token_at(simulation.add("long", LONG, 1, "ada"))
    began = simulation.now
    follower = simulation.add("longer", LONG + 500, 1, "ada")
    assert simulation.first_token_at(follower) - began < 0.1


@pytest.mark.parametrize("num_prompt", [8000, 16_000])
def test_with_many_prompts_waiting_the_throughput_is_that_of_whole_steps(num_prompt: int) -> None:
    def tokens_per_second(long_prompts: LongPrompts) -> float:
        """Of 64 users who ask again as soon as they are answered."""
        simulation = simulate(blocks=100_000, long_prompts=long_prompts)
        users = [simulation.add("user", num_prompt, 32 + 2 * i) for i in range(64)]
        while simulation.now < 40.0:
            simulation.step()
            for i, user in enumerate(users):
                if user.ended:
                    users[i] = simulation.add("user", num_prompt, 96)
        return sum(map(len, simulation.token_times.values())) / simulation.now

    paced = tokens_per_second(LongPrompts())
    assert paced > 0.9 * tokens_per_second(LongPrompts(tokens=10**6))


def decodes(count: int) -> StepInput:
    return StepInput([0] * count, [400] * count, [1] * count, [[]] * count, [True] * count)


def prefill_seconds(num_tokens: int, chunk: int) -> float:
    """Of a prompt alone."""
    starts = range(0, num_tokens, chunk)
    return sum(gpu_seconds(StepInput([0], [at], [chunk], [[]], [False])) for at in starts)


# The pace by itself


def decode_steps(pace: Pace, count: int, seconds: float = 0.01) -> None:
    for _ in range(count):
        pace.scheduled(has_long_prompt=False)
        pace.took(seconds, has_long_prompt=False)


def long_step(pace: Pace, seconds: float) -> None:
    pace.scheduled(has_long_prompt=True)
    assert pace.holds, "one at a time"
    pace.took(seconds, has_long_prompt=True)


def held_steps(pace: Pace) -> int:
    for count in itertools.count():
        if not pace.holds:
            return count
        decode_steps(pace, 1)
    raise AssertionError


def test_a_delay_is_spread_over_as_many_steps_as_the_share_asks_for() -> None:
    pace = Pace(0.2)
    decode_steps(pace, 3)
    assert not pace.holds
    long_step(pace, 0.05)  # 40 ms longer, and 20 % of 10 ms are 2 ms
    assert held_steps(pace) == 20
    long_step(pace, 0.01)
    assert held_steps(pace) == 0, "what delays nobody may go on"


def test_a_launch_that_holds_up_the_step_before_is_a_delay() -> None:
    pace = Pace(0.2)
    decode_steps(pace, 3)
    pace.scheduled(has_long_prompt=False)
    pace.scheduled(has_long_prompt=True)
    pace.took(0.03, has_long_prompt=False)
    pace.took(0.01, has_long_prompt=True)
    assert held_steps(pace) == 10


def test_nothing_measured_holds_for_ever() -> None:
    pace = Pace(0.01)
    decode_steps(pace, 3, 1e-6)
    long_step(pace, 1e9)
    assert held_steps(pace) == 256
    pace = Pace(0.01)
    long_step(pace, 1e9)
    assert held_steps(pace) == 1, "without anything to compare with"


def test_one_slow_step_does_not_change_what_is_typical_by_much() -> None:
    pace = Pace(0.2)
    decode_steps(pace, 3)
    decode_steps(pace, 1, 100.0)
    long_step(pace, 0.05)
    assert 15 <= held_steps(pace) <= 20


def test_a_step_that_is_lost_holds_nothing() -> None:
    pace = Pace(0.2)
    decode_steps(pace, 3)
    pace.scheduled(has_long_prompt=True)
    pace.reset()
    assert not pace.holds


# Whatever comes


@settings(max_examples=150, deadline=None)
@given(
    budget=st.integers(1, 40),
    rows=st.integers(1, 8),
    blocks=st.integers(4, 40),
    long_tokens=st.integers(1, 40),
    slowdown=st.sampled_from([0.01, 0.2, 5.0]),
    overlaps=st.booleans(),
    arrivals=st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5)), max_size=12
    ),
    times=st.lists(st.sampled_from([0.0, 1e-3, 1.0, 1e3]), min_size=1, max_size=20),
)
def test_every_request_advances_within_the_budget(
    budget: int,
    rows: int,
    blocks: int,
    long_tokens: int,
    slowdown: float,
    overlaps: bool,
    arrivals: list[tuple[int, int, int]],
    times: list[float],
) -> None:
    clock = itertools.cycle(times)
    simulation = simulate(
        budget=budget,
        rows=rows,
        blocks=blocks,
        overlaps=overlaps,
        seconds=lambda _: next(clock),
        long_prompts=LongPrompts(long_tokens, slowdown),
    )
    made: list[Request] = []
    for num_prompt, output, pause in arrivals:
        if num_prompt + output <= blocks * BLOCK:
            made.append(simulation.add("any", num_prompt, output))
        for _ in range(pause):
            checked_step(simulation, made, budget)
    bound = sum(request.max_len * 260 for request in made)
    for _ in range(bound):
        if simulation.scheduler.num_running + simulation.scheduler.num_waiting == 0:
            break
        checked_step(simulation, made, budget)
    assert all(request.ended for request in made)
    assert all(len(request.token_ids) == request.max_len for request in made)
    while simulation.flying:
        simulation.step()
    simulation.scheduler._cache.check_all_free()


def checked_step(simulation: Simulation, made: list[Request], budget: int) -> None:
    step = simulation.step()
    if step is None:
        assert all(request.ended for request in made), "a step computes something"
        return
    assert 0 < sum(step.input.num_tokens) <= budget
    longer = [count > 1 for count in step.input.num_tokens]
    assert longer == sorted(longer), "rows with one token stand first"
