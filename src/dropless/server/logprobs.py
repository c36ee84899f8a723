"""Log probabilities as OpenAI's two endpoints show them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from dropless.engine.messages import TokenLogprob
from dropless.text.tokenizer import Tokenizer


class TokenNames:
    """How single tokens are written: their text, a control token's name, or for a part of a
    character `bytes:\\x..` as OpenAI does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = {i: text for text, i in tokenizer.control_tokens.items()}

    def name(self, token_id: int) -> str:
        if token_id in self._control:
            return self._control[token_id]
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def bytes_of(self, token_id: int) -> list[int]:
        if token_id in self._control:
            return list(self._control[token_id].encode())
        return list(self._tokenizer.token_bytes(token_id))

    def text_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text: nothing for a control token."""
        return self._tokenizer.token_bytes(token_id)

    def chat_entry(self, entry: TokenLogprob) -> dict[str, Any]:
        """One element of chat's `logprobs.content`."""
        top = [self._chat_token(token_id, logprob) for token_id, logprob in entry.top]
        return {**self._chat_token(entry.token_id, entry.logprob), "top_logprobs": top}

    def _chat_token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self.name(token_id),
            "logprob": logprob,
            "bytes": self.bytes_of(token_id),
        }

    def prompt_entries(self, entries: Sequence[TokenLogprob | None]) -> list[dict[str, Any] | None]:
        """The extension `prompt_logprobs`: chat's entries with their token ids, null first."""
        return [
            None if entry is None else {"token_id": entry.token_id, **self.chat_entry(entry)}
            for entry in entries
        ]


LogprobLists = dict[str, list[Any] | None]


class LegacyLogprobs:
    """The parallel lists of /v1/completions for one choice, built as its tokens come.

    `text_offset` counts characters of the choice's text. A token that begins inside a character
    has that character's offset. Bytes that are no UTF-8 are U+FFFD in the text, and count so.
    """

    def __init__(self, names: TokenNames, num_top: int) -> None:
        self._names = names
        self._num_top = num_top
        self._offset = 0  # characters of the text so far, without one that is not complete yet
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def begin_at_prompt(self, prompt_text: str, prompt_token_ids: Sequence[int]) -> None:
        """The text begins with this prompt. A space that the tokenizer puts before it is not in
        its text, so the count starts below zero by as much."""
        data = b"".join(self._names.text_bytes(i) for i in prompt_token_ids)
        self._offset = min(0, len(prompt_text) - len(data.decode(errors="replace")))

    def add(self, token_ids: Sequence[int], entries: Sequence[TokenLogprob | None]) -> LogprobLists:
        """The lists for these next tokens. An entry is None for the first token of a prompt,
        which nothing predicts."""
        offsets = [self._advance(self._names.text_bytes(token_id)) for token_id in token_ids]
        return {
            "tokens": [self._names.name(token_id) for token_id in token_ids],
            "token_logprobs": [None if entry is None else entry.logprob for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries] if self._num_top else None,
            "text_offset": [max(0, offset) for offset in offsets],
        }

    def _advance(self, data: bytes) -> int:
        """Where a token of these bytes begins; they are then counted."""
        begun = self._decoder.getstate()[0]
        start = self._offset
        if begun and data and not _continues(begun, data[:1]):
            # What was begun stays incomplete: a U+FFFD stands before the token, or for the first
            # two bytes of a surrogate two.
            start += len(begun.decode(errors="replace"))
        self._offset += len(self._decoder.decode(data))
        return start

    def _top(self, entry: TokenLogprob | None) -> dict[str, float] | None:
        """The most likely tokens and the chosen one, best first."""
        if entry is None:
            return None
        top: dict[str, float] = {}
        for token_id, logprob in [*entry.top[: self._num_top], (entry.token_id, entry.logprob)]:
            top.setdefault(self._names.name(token_id), logprob)
        return top


def _continues(begun: bytes, byte: bytes) -> bool:
    """Whether a byte belongs to the character that these first bytes of it have begun."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(begun + byte)
    except UnicodeDecodeError:
        return False
    return True
