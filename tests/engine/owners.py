"""A scheduler and the owners who share it, without a model or a clock."""

from __future__ import annotations

import itertools
from collections import Counter, deque

from dropless.engine.kv_cache import KVCache
from dropless.engine.request import Request
from dropless.engine.sampling_params import SamplingParams
from dropless.engine.scheduler import ScheduledStep, Scheduler
from dropless.engine.step import StepResult

BLOCK = 4


class Shared:
    """Steps of a scheduler, with the next one scheduled before the last is known or not; and how
    many tokens were computed for whom. A request is named after its owner: "ada 0", "ada 1"."""

    def __init__(
        self,
        *,
        rows: int = 8,
        budget: int = 16,
        blocks: int = 1000,
        overlaps: bool = False,
        prefix_caching: bool = True,
    ) -> None:
        self.cache = KVCache(blocks, BLOCK, prefix_caching=prefix_caching)
        self.scheduler = Scheduler(self.cache, max_running_requests=rows, step_token_budget=budget)
        self.computed: Counter[str] = Counter()  # by owner, as often as it was done
        self.live: list[Request] = []
        self._budget = budget
        self._overlaps = overlaps
        self._flying: deque[ScheduledStep] = deque()
        self._arrivals = itertools.count()
        self._names: Counter[str] = Counter()

    def add(
        self,
        owner: str,
        num_prompt: int = 4,
        *,
        output: int = 50,
        weight: float = 1.0,
        priority: int = 0,
        token_id: int | None = None,
    ) -> Request:
        """A request with a prompt like no other, unless it is all of this token."""
        arrival = next(self._arrivals)
        name = f"{owner} {self._names[owner]}"
        self._names[owner] += 1
        request = Request(
            request_id=name,
            owner=owner,
            order=(-priority, arrival),
            params=SamplingParams(max_tokens=output),
            seed=7,
            token_ids=[10 + arrival if token_id is None else token_id] * num_prompt,
            num_prompt_tokens=num_prompt,
            max_len=num_prompt + output,
            end_token_ids=frozenset(),
            weight=weight,
        )
        self.scheduler.add(request)
        self.live.append(request)
        return request

    def step(self) -> dict[str, int]:
        """The tokens of each request in the oldest step that is not taken in yet."""
        for _ in range(1 + self._overlaps - len(self._flying)):
            step = self.scheduler.schedule()
            if step is not None:
                self._flying.append(step)
        if not self._flying:
            assert not self.live, "a step computes something"
            return {}
        oldest = self._flying.popleft()
        counts = oldest.input.num_tokens
        assert 0 < sum(counts) <= self._budget
        assert [count > 1 for count in counts] == sorted(count > 1 for count in counts)
        tokens = [1 if due else None for due in oldest.input.sample]
        self.scheduler.update(oldest, StepResult(tokens, [None] * len(tokens)))
        for request, count in zip(oldest.requests, counts, strict=True):
            self.computed[request.owner] += count
        self.live = [request for request in self.live if not request.ended]
        return {r.request_id: n for r, n in zip(oldest.requests, counts, strict=True)}

    def steps(self, count: int) -> list[dict[str, int]]:
        return [self.step() for _ in range(count)]

    def run_out(self, most_steps: int) -> int:
        """Until nothing is live and every block is free; how many steps that takes."""
        for count in range(most_steps):
            if not self.live:
                while self._flying:
                    self.step()
                self.cache.check_all_free()
                return count
            self.step()
        raise AssertionError(f"{len(self.live)} requests have not ended after {most_steps} steps")

    @property
    def running(self) -> Counter[str]:
        """How many requests of each owner have a row."""
        return Counter(request.owner for request in self.live if request.row >= 0)

    @property
    def preemptions(self) -> int:
        return self.scheduler.counters.preemptions
