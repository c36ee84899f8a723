"""Results of offline generation, gathered from deltas as they come."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dropless.engine.messages import EngineRequest, FinishReason, TokenDelta, TokenLogprob
from dropless.engine.output import OutputText, TextDelta


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one sequence; `cached` of the prompt's were found in the prefix cache."""

    prompt: int
    completion: int
    cached: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds since the sequence was asked for."""

    queue_s: float  # until it was first scheduled
    first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """One finished sequence. `token_ids`, and `logprobs` beside them, are those of `text`: without
    the stop token or what lies in a stop string. `error` says why if `finish_reason` is "error"."""

    prompt_token_ids: list[int]
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: list[TokenLogprob] | None
    prompt_logprobs: list[TokenLogprob | None] | None
    usage: Usage
    timings: Timings
    error: str | None = None


class Gathering:
    """One sequence on its way through the engine."""

    def __init__(self, request: EngineRequest, output: OutputText | None) -> None:
        """`output` is None for a model without a tokenizer. The clock starts now."""
        self.request = request
        self._output = output
        self._began = time.time()
        self._first_token_time = 0.0
        self._first: TokenDelta | None = None
        self._num_generated = 0
        self._prompt_logprobs: list[TokenLogprob | None] | None = None
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def push(self, delta: TokenDelta) -> GenerationResult | None:
        """Take in what came; the result when that was the last."""
        if self._first is None:
            self._first, self._first_token_time = delta, time.time()
        self._num_generated += len(delta.new_token_ids)
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = delta.prompt_logprobs
        visible = self._output.push(delta) if self._output else _without_text(delta)
        self._text.append(visible.text)
        self._token_ids += visible.token_ids
        self._logprobs += visible.logprobs or []
        if visible.finish_reason is None:
            return None
        prompt = self.request.prompt_token_ids
        return GenerationResult(
            prompt_token_ids=prompt,
            text="".join(self._text),
            token_ids=self._token_ids,
            finish_reason=visible.finish_reason,
            stop_reason=visible.stop_reason,
            logprobs=self._logprobs if self.request.params.logprobs is not None else None,
            prompt_logprobs=self._prompt_logprobs,
            usage=Usage(len(prompt), self._num_generated, self._first.num_cached_tokens),
            timings=Timings(
                queue_s=max(0.0, self._first.scheduled_time - self._began),
                first_token_s=self._first_token_time - self._began,
                total_s=time.time() - self._began,
            ),
            error=delta.error,
        )


def _without_text(delta: TokenDelta) -> TextDelta:
    """What a model without a tokenizer shows: its tokens, save for a stop token."""
    end = len(delta.new_token_ids) - (delta.stop_token_id is not None)
    logprobs = None if delta.logprobs is None else delta.logprobs[:end]
    return TextDelta("", delta.new_token_ids[:end], logprobs, delta.finish_reason, None)
