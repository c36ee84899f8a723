"""An executor without a model that sees what a runner would see, and checks all of it.

Each cache slot remembers the position, token and owner written there. A sampled token is a function
of all tokens before it as they are read back through the block table, so that wrong sharing, a lost
block or a skipped token shows as an error or as a different output. A device that overlaps lets its
next step be launched before the result of the last is read; it computes all in the order of launch.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dropless.engine.constraints import Constraints
from dropless.engine.engine import Engine
from dropless.engine.long_prompts import LongPrompts
from dropless.engine.messages import EngineRequest, FinishReason, TokenLogprob
from dropless.engine.step import NewRequest, StepInput, StepResult
from dropless.errors import GrammarError

VOCAB = 64
EOS, FAILS, ENDS_GRAMMAR = 2, 3, 4  # sampled tokens with a meaning
ERROR_TEXT = "the grammar cannot be followed"


def next_token(token_ids: Sequence[int], seed: int) -> int:
    """What "the model" samples after these tokens."""
    data = struct.pack(f"{len(token_ids)}iq", *token_ids, seed)
    return zlib.crc32(data) % VOCAB


def logprob_of(token_ids: Sequence[int]) -> TokenLogprob:
    """What the model reports of the last of these tokens, which the others predict."""
    return TokenLogprob(token_ids[-1], -(zlib.crc32(bytes(token_ids)) % 1000) / 100, [])


def solo_output(
    request: EngineRequest, seed: int, max_len: int
) -> tuple[list[int], FinishReason, int | None]:
    """Tokens, finish reason and stop token of a request that nothing disturbs."""
    params, token_ids = request.params, list(request.prompt_token_ids)
    num_prompt = len(token_ids)
    room = max_len - num_prompt
    ends = {*(() if params.ignore_eos else (EOS,)), *params.stop_token_ids}
    while True:
        token = next_token(token_ids, seed)
        if token == FAILS:
            return token_ids[num_prompt:], "error", None
        token_ids.append(token)
        if token in ends:
            return token_ids[num_prompt:], "stop", token
        if token == ENDS_GRAMMAR:
            return token_ids[num_prompt:], "stop", None
        if len(token_ids) - num_prompt == min(room, params.max_tokens or room):
            return token_ids[num_prompt:], "length", None


@dataclass
class _Row:
    request: NewRequest
    owner: str
    token_ids: list[int]
    blocks: list[int] = field(default_factory=list)
    num_computed: int | None = None  # None before the first step
    num_unread: int = 0  # last tokens that the host does not know


class Launched:
    """A step that the device has computed."""

    def __init__(self, device: SimulatedDevice, sampled: list[_Row], result: StepResult) -> None:
        self._device = device
        self._sampled = sampled
        self._result = result

    def result(self) -> StepResult:
        self._device.read(self)
        for row in self._sampled:
            row.num_unread -= 1
        return self._result


class SimulatedDevice:
    """Raises AssertionError as soon as a step is not what a runner needs."""

    def __init__(
        self, *, num_blocks: int, block_size: int, max_rows: int, budget: int, overlaps: bool
    ) -> None:
        self.overlaps = overlaps
        self.num_blocks, self.block_size = num_blocks, block_size
        self.max_rows, self.budget = max_rows, budget
        self.owners: dict[str, str] = {}  # told by whoever adds a request
        self.seeds: dict[str, int] = {}
        self.steps: list[StepInput] = []
        self.fail_next: BaseException | None = None
        self.fail_at: Literal["launch", "result"] = "launch"
        self.memory_tokens = budget  # steps with more lack memory
        self.closed = False
        self.num_early = 0  # steps launched before the last one's result was read
        self._unread: deque[Launched] = deque()
        self._rows: dict[int, _Row] = {}
        self._slots: dict[int, tuple[int, int, str]] = {}

    def launch(self, step: StepInput) -> Launched:
        self.steps.append(step)
        if sum(step.num_tokens) > self.memory_tokens:
            self.fail_next = MemoryError()
            self.fail_at = "launch"
        if self.fail_at == "launch":
            self._fail_if_asked()
        assert len(self._unread) <= self.overlaps, "too early"
        self.num_early += len(self._unread)
        self._take_in(step)
        self._check_shape(step)
        for i in range(len(step.rows)):
            self._write(step, i)
        result = StepResult([None] * len(step.rows), [None] * len(step.rows))
        for i in range(len(step.rows)):
            self._compute(step, i, result)
        sampled = [self._rows[row] for row, due in zip(step.rows, step.sample, strict=True) if due]
        for row in sampled:
            row.num_unread += 1
        self._unread.append(Launched(self, sampled, result))
        return self._unread[-1]

    def read(self, launched: Launched) -> None:
        """The host asks for this step's result."""
        self._fail_if_asked()
        assert self._unread.popleft() is launched, "results are read once, in order"

    def _fail_if_asked(self) -> None:
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            self._rows.clear()
            self._unread.clear()
            raise error

    def survives(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def close(self) -> None:
        self.closed = True

    def _take_in(self, step: StepInput) -> None:
        assert len(set(step.freed_rows)) == len(step.freed_rows)
        for row in step.freed_rows:
            self._rows.pop(row, None)
        for new in step.new_requests:
            assert 0 <= new.row < self.max_rows
            assert new.row not in self._rows, "a row is given away before it is freed"
            assert self.seeds.setdefault(new.request_id, new.seed) == new.seed
            owner = self.owners.get(new.request_id, "")
            self._rows[new.row] = _Row(new, owner, list(new.token_ids))

    def _check_shape(self, step: StepInput) -> None:
        assert step.rows, "a step computes something"
        assert len(set(step.rows)) == len(step.rows)
        lists = (step.num_computed, step.num_tokens, step.new_blocks, step.sample)
        assert {len(each) for each in lists} == {len(step.rows)}
        assert min(step.num_tokens) >= 1
        assert sum(step.num_tokens) <= self.budget
        longer = [count > 1 for count in step.num_tokens]
        assert longer == sorted(longer), "rows with one token stand first"

    def _write(self, step: StepInput, i: int) -> None:
        row = self._rows[step.rows[i]]
        first, count = step.num_computed[i], step.num_tokens[i]
        if row.request.params.follows_output:
            assert row.num_unread == 0, "the host must know the last token first"
        if row.num_unread:
            assert count == 1, "only the last token can be unknown to the host"
        if row.num_computed is None:
            assert first % self.block_size == 0, "only whole blocks are found in the cache"
        else:
            assert first == row.num_computed, "computed tokens are contiguous"
        assert step.sample[i] == (first + count == len(row.token_ids))
        row.num_computed = first + count
        row.blocks += step.new_blocks[i]
        assert len(set(row.blocks)) == len(row.blocks)
        assert len(row.blocks) == -(-row.num_computed // self.block_size)
        for position in range(first, row.num_computed):
            block = row.blocks[position // self.block_size]
            assert 0 <= block < self.num_blocks
            holders = [other for other in self._rows.values() if block in other.blocks]
            assert holders == [row], "a block is written by its only holder"
            token = row.token_ids[position]
            self._slots[self._slot(row, position)] = (position, token, row.owner)

    def _compute(self, step: StepInput, i: int, result: StepResult) -> None:
        row = self._rows[step.rows[i]]
        assert row.num_computed is not None
        prefix = []
        for position in range(row.num_computed):
            found = self._slots[self._slot(row, position)]
            assert found == (position, row.token_ids[position], row.owner)
            prefix.append(found[1])
        if row.request.params.prompt_logprobs is not None:
            result.prompt_logprobs[i] = self._prompt_logprobs(row, step.num_computed[i])
        if not step.sample[i]:
            return
        token = next_token(prefix, row.request.seed)
        row.token_ids.append(token)
        if token == FAILS:
            result.errors[i] = GrammarError(ERROR_TEXT)
            return
        result.token_ids[i] = token
        if row.request.params.logprobs is not None:
            result.logprobs[i] = logprob_of(row.token_ids)
        if token == ENDS_GRAMMAR:
            result.grammar_finished.add(i)

    def _prompt_logprobs(self, row: _Row, first: int) -> list[TokenLogprob | None]:
        assert row.num_computed is not None
        found: list[TokenLogprob | None] = [None] if first == 0 else []
        end = min(row.num_computed + 1, row.request.num_prompt_tokens)
        return found + [logprob_of(row.token_ids[: n + 1]) for n in range(first + 1, end)]

    def _slot(self, row: _Row, position: int) -> int:
        block = row.blocks[position // self.block_size]
        return block * self.block_size + position % self.block_size


def make_engine(
    *,
    num_blocks: int = 32,
    block_size: int = 4,
    max_model_len: int = 64,
    max_running_requests: int = 4,
    max_waiting_requests: int = 100,
    step_token_budget: int = 16,
    prefix_caching: bool = True,
    overlaps: bool = False,
    long_prompt_tokens: int = 1000,
) -> tuple[Engine, SimulatedDevice]:
    """A real engine on a simulated device."""
    device = SimulatedDevice(
        num_blocks=num_blocks,
        block_size=block_size,
        max_rows=max_running_requests,
        budget=step_token_budget,
        overlaps=overlaps,
    )
    engine = Engine(
        device,
        Constraints(None, VOCAB, [EOS]),
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=max_model_len,
        max_running_requests=max_running_requests,
        max_waiting_requests=max_waiting_requests,
        step_token_budget=step_token_budget,
        prefix_caching=prefix_caching,
        long_prompts=LongPrompts(long_prompt_tokens),
    )
    return engine, device
