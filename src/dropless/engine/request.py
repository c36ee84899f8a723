"""One request inside the engine: its tokens, what of them is computed, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from dropless.engine.messages import FinishReason, TokenDelta, TokenLogprob
from dropless.engine.sampling_params import SamplingParams
from dropless.engine.step import NewRequest

NO_ROW = -1


@dataclass(slots=True, eq=False)
class Request:
    """`token_ids` is the prompt and what was generated so far; `num_computed` of them have their
    keys and values in `blocks`. The scheduler lets `num_computed` chase `len(token_ids)`."""

    request_id: str
    owner: str
    order: tuple[int, int]  # (-priority, arrival): the smaller, the sooner scheduled
    params: SamplingParams  # max_tokens is never None
    seed: int
    token_ids: list[int]
    num_prompt_tokens: int
    max_len: int  # prompt and output, in tokens
    end_token_ids: frozenset[int]  # each ends the request, and is its stop_token_id then

    row: int = NO_ROW  # in the runner's tables, while running
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    new_blocks: list[int] = field(default_factory=list)  # of `blocks`, those not yet in a step
    num_registered: int = 0  # leading blocks that were offered to the prefix cache
    block_hashes: list[bytes] = field(default_factory=list)  # of leading full blocks; never wrong

    scheduled_time: float = 0.0  # time.time() of the first start, 0 before
    num_cached_tokens: int = 0  # found in the prefix cache at the first start
    # Gathered while the prompt is computed; None when not asked for, or sent.
    prompt_logprobs: list[TokenLogprob | None] | None = None

    def __post_init__(self) -> None:
        if self.params.prompt_logprobs is not None:
            self.prompt_logprobs = []

    @property
    def reuses_prefix(self) -> bool:
        """Whether cached tokens may be skipped: not while each prompt token's probability must
        still be computed."""
        return self.prompt_logprobs is None

    def start(self, row: int) -> NewRequest:
        """Take a row; what the runner must know to run this request there."""
        self.row = row
        params = self.params
        if params.prompt_logprobs is not None and self.prompt_logprobs is None:
            params = msgspec.structs.replace(params, prompt_logprobs=None)  # they are sent
        return NewRequest(
            row,
            self.request_id,
            list(self.token_ids),
            self.num_prompt_tokens,
            params,
            self.seed,
        )

    def reset(self) -> None:
        """Forget what was computed, once its row and blocks are given back. Tokens stay."""
        self.row = NO_ROW
        self.num_computed = 0
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = []

    def accept(
        self, token_id: int, logprob: TokenLogprob | None, *, grammar_finished: bool
    ) -> TokenDelta:
        """Append a sampled token. The delta has a finish reason if that was the last one."""
        self.token_ids.append(token_id)
        finish_reason: FinishReason | None = None
        if token_id in self.end_token_ids or grammar_finished:
            finish_reason = "stop"
        elif len(self.token_ids) >= self.max_len:
            finish_reason = "length"
        prompt_logprobs, self.prompt_logprobs = self.prompt_logprobs, None
        return TokenDelta(
            self.request_id,
            [token_id],
            finish_reason,
            token_id if token_id in self.end_token_ids else None,
            None if logprob is None else [logprob],
            prompt_logprobs,
            self.num_cached_tokens,
            self.scheduled_time,
        )

    def failed(self, error: str) -> TokenDelta:
        """The last delta of a request that this error ends."""
        return TokenDelta(
            self.request_id,
            [],
            "error",
            num_cached_tokens=self.num_cached_tokens,
            scheduled_time=self.scheduled_time,
            error=error,
        )

    def aborted(self) -> TokenDelta:
        """The last delta of a request that nobody wants any more."""
        return TokenDelta(
            self.request_id,
            [],
            "abort",
            num_cached_tokens=self.num_cached_tokens,
            scheduled_time=self.scheduled_time,
        )
