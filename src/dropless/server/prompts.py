"""From what a client wrote to prompt token ids, without keeping the event loop from its work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from dropless.errors import ContextLengthError, InvalidRequestError
from dropless.server.protocol import Prompt
from dropless.server.tools.prompt import render_chat
from dropless.text.chat_template import ChatTemplate
from dropless.text.infill import infill_prompt
from dropless.text.tokenizer import Tokenizer

T = TypeVar("T")

# Texts up to this size are encoded where they are: about a millisecond, less than what changing
# threads costs the other streams. Characters.
_SMALL_TEXT = 2000


class PromptEncoder:
    """Large texts are encoded on one thread of their own, one after the other."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode-prompts")

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Of messages as templates know them; `tools` are the functions that the model is told of.
        Raises ChatTemplateError."""
        size = sum(len(message["content"]) for message in messages)
        calls = [message["tool_calls"] for message in messages if "tool_calls" in message]
        if tools or calls:
            size += len(repr((tools, calls)))
        return await self._run(size, lambda: render_chat(self._template, messages, tools))

    async def completion(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Texts get a beginning-of-text token if the model is used to one; ids stay as they are."""
        size = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        return await self._run(size, lambda: [self._encode(prompt) for prompt in prompts])

    async def instructed(
        self, prompts: Sequence[str], system: Sequence[Mapping[str, str]]
    ) -> list[list[int]]:
        """Each prompt as what a user says in a chat of its own. Raises ChatTemplateError."""
        size = sum(len(prompt) for prompt in prompts)
        chats = [[*system, {"role": "user", "content": prompt}] for prompt in prompts]
        return await self._run(size, lambda: [self._template.render(chat) for chat in chats])

    async def infill(self, prompts: Sequence[str], suffix: str) -> list[list[int]]:
        """Each prompt with a gap before the suffix. Raises InvalidRequestError."""
        size = sum(len(prompt) + len(suffix) for prompt in prompts)
        tokenizer = self._tokenizer
        return await self._run(
            size, lambda: [infill_prompt(tokenizer, prompt, suffix) for prompt in prompts]
        )

    def truncated(self, token_ids: list[int], room: int) -> list[int]:
        """The end of a prompt that is longer than `room` tokens, behind the beginning-of-text
        token if it has one."""
        if len(token_ids) <= room or room < 2:
            return token_ids
        if token_ids[0] == self._tokenizer.bos_token_id:
            return [token_ids[0], *token_ids[1 - room :]]
        return token_ids[-room:]

    def prompt_texts(self, prompts: Sequence[Prompt]) -> list[str]:
        """The prompts as text, for `echo`."""
        return [p if isinstance(p, str) else self._tokenizer.decode(p) for p in prompts]

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, add_bos=self._tokenizer.add_bos)
        return prompt

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        if size <= _SMALL_TEXT:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def check_prompt(
    token_ids: Sequence[int],
    *,
    param: str,
    max_tokens: int | None,
    max_model_len: int,
    vocab_size: int,
) -> None:
    """Raises:
    InvalidRequestError: empty, or an id that the model's vocabulary does not have.
    ContextLengthError: the prompt alone, or with `max_tokens`, exceeds `max_model_len`.
    """
    if not token_ids:
        raise InvalidRequestError("the prompt has no tokens; send some text", param=param)
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise InvalidRequestError(
            f"prompt token id {wrong} is not in the vocabulary, which ends at {vocab_size - 1}",
            param=param,
        )
    if len(token_ids) >= max_model_len:
        raise ContextLengthError(
            f"the prompt has {len(token_ids)} tokens, but prompt and answer together can have "
            f"{max_model_len}; shorten the prompt",
            param=param,
        )
    if max_tokens is not None and len(token_ids) + max_tokens > max_model_len:
        raise ContextLengthError(
            f"the prompt has {len(token_ids)} tokens and max_tokens is {max_tokens}: together "
            f"{len(token_ids) + max_tokens}, but the model can have {max_model_len}; shorten the "
            "prompt or lower max_tokens",
            param=param,
        )
