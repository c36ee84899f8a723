"""The answers of /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace

from dropless.engine.messages import TokenLogprob
from dropless.engine.output import TextDelta
from dropless.server.answer import Answer, Envelope
from dropless.server.generation import Choice, Generation, Usage
from dropless.server.logprobs import LegacyLogprobs, LogprobLists, TokenNames

_encode = msgspec.json.encode


@dataclass(slots=True)
class _Text:
    """Some text and its tokens, with an entry beside each if logprobs are asked for."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)

    def extend(self, more: _Text) -> None:
        self.text += more.text
        self.token_ids += more.token_ids
        self.logprobs += more.logprobs


@dataclass(slots=True)
class _Shown:
    """Some text, and the lists of its tokens' log probabilities, None if nobody asked for them."""

    text: str
    lists: LogprobLists | None


class CompletionAnswer(Answer[_Shown]):
    """`logprobs` is how many alternatives to show, None for no logprobs. `echo` holds the text of
    each prompt, None if it is not wanted back. `prompt_only` leaves out all that was generated.
    `prompt_logprobs` adds the extension of that name."""

    body_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self,
        generation: Generation,
        envelope: Envelope,
        names: TokenNames,
        *,
        logprobs: int | None,
        echo: Sequence[str] | None,
        prompt_only: bool,
        prompt_logprobs: bool,
    ) -> None:
        super().__init__(generation, envelope)
        self._names = names
        self._echo = echo
        self._prompt_only = prompt_only
        self._prompt_logprobs = prompt_logprobs
        self._legacy: list[LegacyLogprobs] | None = None
        if logprobs is not None:
            self._legacy = [LegacyLogprobs(names, logprobs) for _ in generation.choices]
        self._begun: set[int] = set()  # choices whose first delta has come
        self._texts: list[list[str]] = [[] for _ in generation.choices]
        self._lists: list[LogprobLists] = [{} for _ in generation.choices]
        self._finish_reasons: dict[int, str] = {}

    def usage(self) -> Usage:
        usage = super().usage()
        return replace(usage, completion_tokens=0) if self._prompt_only else usage

    def _collect(self, choice: Choice, delta: TextDelta) -> _Shown:
        news = self._news(choice, delta)
        self._texts[choice.index].append(news.text)
        if delta.finish_reason is not None:
            self._finish_reasons[choice.index] = delta.finish_reason
        if self._legacy is None:
            return _Shown(news.text, None)
        lists = self._legacy[choice.index].add(news.token_ids, news.logprobs)
        _append(self._lists[choice.index], lists)
        return _Shown(news.text, lists)

    def _chunk(self, choice: Choice, delta: TextDelta, news: _Shown) -> bytes:
        events = b""
        if news.text or (news.lists and news.lists["tokens"]):
            events = self._text_event(choice.index, news.text, news.lists)
        if delta.finish_reason is not None:
            events += self._text_event(choice.index, finish_reason=delta.finish_reason)
        return events

    def _text_event(
        self,
        index: int,
        text: str = "",
        logprobs: LogprobLists | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        parts = (index, _encode(text), _encode(logprobs), _encode(finish_reason))
        return self._event(b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}' % parts)

    def _news(self, choice: Choice, delta: TextDelta) -> _Text:
        """What this delta adds; an echoed prompt comes with the first."""
        news = _Text()
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            if self._echo is not None:
                news = self._prompt(choice, self._echo[choice.index // self.generation.n])
        if not self._prompt_only:
            news.extend(_Text(delta.text, delta.token_ids, list(delta.logprobs or ())))
        return news

    def _prompt(self, choice: Choice, text: str) -> _Text:
        token_ids = choice.request.prompt_token_ids
        if self._legacy is None:
            return _Text(text)
        self._legacy[choice.index].begin_at_prompt(text, token_ids)
        return _Text(text, list(token_ids), list(choice.prompt_logprobs or ()))

    def _choice(self, choice: Choice) -> dict[str, Any]:
        index = choice.index
        entry: dict[str, Any] = {
            "index": index,
            "text": "".join(self._texts[index]),
            "logprobs": None if self._legacy is None else self._lists[index],
            "finish_reason": self._finish_reasons.get(index),
        }
        if self._prompt_logprobs and choice.prompt_logprobs is not None:
            entry["prompt_logprobs"] = self._names.prompt_entries(choice.prompt_logprobs)
        return entry


def _append(lists: LogprobLists, more: LogprobLists) -> None:
    """Make each list longer by what `more` has of its name."""
    for name, values in more.items():
        kept = lists.setdefault(name, None if values is None else [])
        if kept is not None and values is not None:
            kept += values
