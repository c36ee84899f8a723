"""The typed messages between the HTTP process and the engine process (msgpack over ZeroMQ)."""

from __future__ import annotations

from typing import Literal

import msgspec

from dropless.engine.sampling_params import SamplingParams

MOST_WEIGHT = 1000.0  # of an owner of requests; its inverse is the least

# The engine never says the last two: a server does, that judges answers and reads calls in them.
FinishReason = Literal["stop", "length", "abort", "error", "content_filter", "tool_calls"]


class EngineRequest(msgspec.Struct, frozen=True, tag="request"):
    """One sequence to generate. `owner` salts the prefix cache: blocks are shared only between
    requests of the same owner. Higher `priority` is scheduled first; within one, owners share the
    engine by `weight`, of which the latest request's counts for its owner."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    owner: str = ""
    priority: int = 0
    weight: float = 1.0
    arrival_time: float = 0.0  # time.time() seconds


class AbortRequests(msgspec.Struct, frozen=True, tag="abort"):
    request_ids: list[str]


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    nonce: int


class ExpertLoadRequest(msgspec.Struct, frozen=True, tag="expert_load_request"):
    nonce: int


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Stop after the current step; requests still running are aborted."""


ToEngine = EngineRequest | AbortRequests | Ping | ExpertLoadRequest | Shutdown


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log probability of one token, and the most likely alternatives (token id, logprob), best
    first. Natural logarithm, of the model's own distribution."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class TokenDelta(msgspec.Struct, tag="delta", omit_defaults=True):
    """What one step produced for one request. The one with a `finish_reason` is the last.

    `new_token_ids` includes the stop token that ended the request, if one did
    (`stop_token_id` repeats it). `prompt_logprobs` comes once, before the first new token; its
    first entry is None because nothing predicts the first prompt token. `error_kind` is the class
    name of `error` in the error tree.
    """

    request_id: str
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0
    scheduled_time: float = 0.0  # time.time() when first scheduled, 0 before
    error: str | None = None
    error_kind: str = "EngineError"

    def extend(self, later: TokenDelta) -> None:
        """Take in the next delta of the same request."""
        self.new_token_ids += later.new_token_ids
        if later.logprobs is not None:
            self.logprobs = (self.logprobs or []) + later.logprobs
        if self.prompt_logprobs is None:
            self.prompt_logprobs = later.prompt_logprobs
        self.finish_reason = later.finish_reason
        self.stop_token_id = later.stop_token_id
        self.error = later.error
        self.error_kind = later.error_kind


class StepDeltas(msgspec.Struct, frozen=True, tag="step"):
    deltas: list[TokenDelta]


class RequestRefused(msgspec.Struct, frozen=True, tag="refused"):
    """The engine did not take a request; nothing else follows for it. `kind` is the class name in
    the error tree, the other fields are that error's own."""

    request_id: str
    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None


class EngineStats(msgspec.Struct, frozen=True):
    """A truthful picture of the engine at one moment. Counters only grow."""

    running: int = 0
    waiting: int = 0
    kv_blocks_total: int = 0
    kv_blocks_free: int = 0  # free, or cached and reclaimable
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    finished_requests: int = 0
    last_step_ms: float = 0.0
    last_schedule_ms: float = 0.0


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """`step_running_s` is how long the step in progress has run; 0 between steps."""

    nonce: int
    step_running_s: float
    stats: EngineStats


class ExpertCounts(msgspec.Struct, frozen=True, tag="expert_counts"):
    """How many (token, choice) pairs went to each expert, by layer, since the engine started: of
    the steps that were looked at, one a second. Empty for a dense model."""

    nonce: int
    counts: list[list[int]]


class EngineReady(msgspec.Struct, frozen=True, tag="ready"):
    """Sent once, when the model is loaded and the cache allocated."""

    model_id: str
    family: str
    max_model_len: int
    vocab_size: int
    block_size: int
    num_blocks: int
    max_running_requests: int
    max_waiting_requests: int
    dtype: str
    quantization: str
    weight_bytes: int
    kv_cache_bytes: int
    load_seconds: float
    experts_per_token: int = 1


class LoadProgress(msgspec.Struct, frozen=True, tag="progress"):
    """Sent while weights load; `fraction` runs from 0 to 1."""

    stage: str
    fraction: float


class EngineFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine could not start or stops for good. `kind` is the class name in the error tree.
    Left in the process' private folder for its parent, which reads it when the process is gone."""

    kind: str
    message: str


FromEngine = StepDeltas | RequestRefused | Pong | ExpertCounts | EngineReady | LoadProgress
