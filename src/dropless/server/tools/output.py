"""The output of one sequence that may call functions: its text, and its calls apart."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import msgspec

from dropless.engine.messages import FinishReason, TokenDelta, TokenLogprob
from dropless.engine.output import OutputText, TextDelta
from dropless.server.tools.definitions import ToolUse
from dropless.text.tool_calls import CallPiece, CallReader


class CallingOutput:
    """Stands in `OutputText`'s place. Tokens, and their log probabilities, are shown with the text
    that they are of; those of calls, and of the marks around them, are not."""

    def __init__(self, output: OutputText, tools: ToolUse) -> None:
        names = [tool.function.name for tool in tools.callable]
        self._output = output
        self._reader = CallReader(names, text_first=not tools.must_call)
        self._came = self._shown = 0  # characters
        self._waiting: deque[tuple[int, TextDelta]] = deque()  # where its text ends; for its tokens

    def push(self, delta: TokenDelta) -> TextDelta:
        """As `OutputText.push`, with what became known of calls. An answer that ended with calls
        has the finish reason `tool_calls`; one that was cut within a call, `length`."""
        text = ""
        calls: list[CallPiece] = []
        token_ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        for part in _parts(delta):
            raw = self._output.push(part)
            more_text, more_calls = self._reader.push(raw.text)
            self._came += len(raw.text)
            if self._reader.is_text:
                self._waiting.append((self._came, raw))
            if raw.finish_reason is not None:
                more_text += self._reader.finish(cut=raw.finish_reason != "stop")
            text += more_text
            calls += more_calls
            self._shown += len(more_text)
            self._take_tokens(token_ids, logprobs)
            if raw.finish_reason is not None:
                break
        return replace(
            raw,
            text=text,
            token_ids=token_ids,
            logprobs=None if delta.logprobs is None else logprobs,
            finish_reason=self._finish_reason(raw),
            calls=calls,
        )

    def _finish_reason(self, raw: TextDelta) -> FinishReason | None:
        if raw.finish_reason == "stop" and self._reader.is_inside:
            return "length"
        if raw.finish_reason == "stop" and self._reader.num_calls:
            return "tool_calls"
        return raw.finish_reason

    def _take_tokens(self, token_ids: list[int], logprobs: list[TokenLogprob]) -> None:
        """Those whose text is out. White space before a call is not, and so neither are they."""
        while self._waiting and self._waiting[0][0] <= self._shown:
            _, delta = self._waiting.popleft()
            token_ids += delta.token_ids
            logprobs += delta.logprobs or []


def _parts(delta: TokenDelta) -> Iterator[TokenDelta]:
    """The delta token by token, where it matters which of them are of the text."""
    if delta.logprobs is None or len(delta.new_token_ids) < 2:
        yield delta
        return
    last = len(delta.new_token_ids) - 1
    for i, (token_id, logprob) in enumerate(zip(delta.new_token_ids, delta.logprobs, strict=True)):
        ends = msgspec.structs.replace(delta, new_token_ids=[token_id], logprobs=[logprob])
        yield (
            ends
            if i == last
            else msgspec.structs.replace(ends, finish_reason=None, stop_token_id=None)
        )
