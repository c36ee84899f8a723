"""Tokens of one request to the text that its caller sees. No torch: server and `LLM` share it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from dropless.engine.messages import FinishReason, TokenDelta, TokenLogprob
from dropless.engine.sampling_params import SamplingParams
from dropless.text.detokenizer import IncrementalDetokenizer
from dropless.text.tokenizer import Tokenizer
from dropless.text.tool_calls import CallPiece


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What became visible of one request. The one with a `finish_reason` is the last.

    `token_ids`, and `logprobs` if asked for, are of the tokens whose text has begun to be visible:
    no stop token is among them, nor a token that lies wholly in a hidden stop string. `stop_reason`
    is the stop string or the one of `stop_token_ids` that ended the request; None for an
    end-of-sequence token and for all other endings. `calls` is what a server reads of calls, whose
    text is not in `text` then.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    calls: Sequence[CallPiece] = ()


class OutputText:
    """The visible text of one request as its tokens come.

    When `push` returns a `finish_reason` "stop" for a delta that had none, a stop string was found:
    the caller aborts the request in the engine, which does not know of it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        continues_text: bool = False,
    ) -> None:
        """`continues_text` says that the output continues a text (a plain completion) instead of
        beginning its own (an answer); it matters for models that begin texts with a space."""
        self._params = params
        self._token_bytes = tokenizer.token_bytes
        self._detokenizer = IncrementalDetokenizer(
            tokenizer, params.stop, params.include_stop, continues_text=continues_text
        )
        self._drops_space = tokenizer.leading_space and not continues_text
        self._held: deque[tuple[int, int]] = deque()  # token id, where its bytes start
        self._held_logprobs: deque[TokenLogprob] = deque()
        self._num_bytes = 0  # of all tokens so far
        self._num_visible = 0  # bytes of the text emitted so far

    def push(self, delta: TokenDelta) -> TextDelta:
        """The text that `delta` makes visible. Nothing may be pushed after a `finish_reason`."""
        visible = len(delta.new_token_ids) - (delta.stop_token_id is not None)
        self._held_logprobs.extend((delta.logprobs or [])[:visible])
        text = "".join(self._push_token(token_id) for token_id in delta.new_token_ids[:visible])
        if delta.finish_reason is not None:
            text += self._detokenizer.finish()
        self._num_visible += len(text.encode())
        stop_string = self._detokenizer.stop_hit
        if stop_string is not None:
            return self._delta(text, "stop", stop_string)
        stop_id = delta.stop_token_id
        stop_reason = stop_id if stop_id in self._params.stop_token_ids else None
        return self._delta(text, delta.finish_reason, stop_reason)

    def _push_token(self, token_id: int) -> str:
        if self._detokenizer.stop_hit is not None:
            return ""
        self._held.append((token_id, self._num_bytes))
        data = self._token_bytes(token_id)
        self._num_bytes += len(data)
        if self._drops_space and data:
            self._num_bytes -= data.startswith(b" ")
            self._drops_space = False
        return self._detokenizer.push([token_id])

    def _delta(
        self, text: str, finish_reason: FinishReason | None, stop_reason: str | int | None
    ) -> TextDelta:
        """Lets go the tokens that are visible now: all of them if no stop string can hide one."""
        nothing_hides = not self._params.stop or (
            finish_reason is not None and self._detokenizer.stop_hit is None
        )
        token_ids = []
        while self._held and (nothing_hides or self._held[0][1] < self._num_visible):
            token_ids.append(self._held.popleft()[0])
        logprobs = None
        if self._params.logprobs is not None:
            logprobs = [self._held_logprobs.popleft() for _ in token_ids]
        return TextDelta(text, token_ids, logprobs, finish_reason, stop_reason)
