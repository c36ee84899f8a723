"""One request inside the engine: its tokens, what of them is computed, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from dropless.engine.messages import FinishReason, TokenDelta, TokenLogprob
from dropless.engine.sampling_params import SamplingParams
from dropless.engine.step import NewRequest
from dropless.errors import DroplessError

if TYPE_CHECKING:
    from dropless.engine.fair_share import Share

NO_ROW = -1
NOT_STARTED = 2**63


@dataclass(slots=True, eq=False)
class Request:
    """`token_ids` is the prompt and what was generated so far. `num_pending` more tokens will come
    from steps whose results are not known yet. Of all these, `num_computed` have their keys and
    values in `blocks` once the steps that are scheduled have run."""

    request_id: str
    owner: str
    order: tuple[int, int]  # (-priority, arrival): the smaller, the sooner scheduled
    params: SamplingParams  # max_tokens is never None
    seed: int
    token_ids: list[int]
    num_prompt_tokens: int
    max_len: int  # prompt and output, in tokens
    end_token_ids: frozenset[int]  # each ends the request, and is its stop_token_id then
    weight: float = 1.0  # of its owner, from now on
    grammar: object = None  # compiled, and held so that no step must compile it again

    row: int = NO_ROW  # in the runner's tables, while running
    num_computed: int = 0
    num_pending: int = 0
    started_in: int = NOT_STARTED  # the number of the step in which it took its row
    num_lost_steps: int = 0  # failed ones, since its last token
    num_charged: int = 0  # leading tokens that cost its owner nothing more
    began_at: float = 0.0  # virtual time at which it took its row
    has_displaced: bool = False  # others were preempted to let it start
    ended: bool = False  # what steps still bring for it is of no interest
    blocks: list[int] = field(default_factory=list)
    new_blocks: list[int] = field(default_factory=list)  # of `blocks`, those not yet in a step
    num_registered: int = 0  # leading blocks that were offered to the prefix cache
    block_hashes: list[bytes] = field(default_factory=list)  # of leading full blocks; never wrong

    scheduled_time: float = 0.0  # time.time() of the first start, 0 before
    num_cached_tokens: int = 0  # found in the prefix cache at the first start
    # Gathered while the prompt is computed; None when not asked for, or sent.
    prompt_logprobs: list[TokenLogprob | None] | None = None

    follows_output: bool = field(init=False)  # as its params
    share: Share = field(init=False)  # its owner's, from when it waits for the first time

    def __post_init__(self) -> None:
        self.follows_output = self.params.follows_output
        if self.params.prompt_logprobs is not None:
            self.prompt_logprobs = []

    @property
    def reuses_prefix(self) -> bool:
        """Whether cached tokens may be skipped: not while each prompt token's probability must
        still be computed."""
        return self.prompt_logprobs is None

    @property
    def has_output(self) -> bool:
        """Whether it has begun to generate, though the first token may be pending."""
        return len(self.token_ids) + self.num_pending > self.num_prompt_tokens

    @property
    def ends_with_pending(self) -> bool:
        """Whether its pending token fills it up, whatever token that is."""
        return self.num_pending > 0 and len(self.token_ids) + self.num_pending >= self.max_len

    def start(self, row: int, step_number: int) -> NewRequest:
        """Take a row in this step; what the runner must know to run this request there."""
        self.row = row
        self.started_in = step_number
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
        """Forget what was computed, once its row and blocks are given back. Tokens stay, and one
        that is pending will still be accepted, with all log probabilities of the prompt."""
        self.row = NO_ROW
        self.num_charged = max(self.num_charged, self.num_computed)
        self.num_computed = 0
        self.started_in = NOT_STARTED
        if self.prompt_logprobs is not None and not self.num_pending:
            self.prompt_logprobs = []

    def drop_pending(self) -> None:
        """The steps that were to bring its pending tokens are lost."""
        if self.num_pending and self.prompt_logprobs is not None:
            self.prompt_logprobs = []
        self.num_pending = 0

    def accept(
        self, token_id: int, logprob: TokenLogprob | None, *, grammar_finished: bool
    ) -> TokenDelta:
        """Append a pending token. The delta has a finish reason if that was the last one."""
        self.num_pending -= 1
        self.num_lost_steps = 0
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

    def failed(self, error: DroplessError) -> TokenDelta:
        """The last delta of a request that this error ends."""
        return TokenDelta(
            self.request_id,
            [],
            "error",
            num_cached_tokens=self.num_cached_tokens,
            scheduled_time=self.scheduled_time,
            error=str(error),
            error_kind=type(error).__name__,
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
