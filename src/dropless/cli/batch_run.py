"""Answers the lines of a batch file with an engine of its own, many at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dropless.cli.batch_file import BatchFile
from dropless.cli.local_engine import LocalEngine
from dropless.engine.messages import EngineRequest
from dropless.engine.output import OutputText
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import EngineDeadError, EngineError, InvalidRequestError
from dropless.server.chat_messages import template_messages
from dropless.server.errors import invalid_request
from dropless.server.protocol import ChatBody, CompletionBody
from dropless.server.tools.prompt import render_chat

Result = dict[str, Any]
NOT_HERE = (
    "stream", "echo", "n", "best_of", "logprobs", "prompt_logprobs", "top_logprobs", "tools",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One line, understood: a chat if it has `messages`, else a text (or token ids) to continue."""

    params: SamplingParams
    prompt: str | list[int] = ""
    messages: list[dict[str, Any]] | None = None


def read_line(line: bytes) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        given = json.loads(line)
    except ValueError as error:
        raise InvalidRequestError(f"the line is not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise InvalidRequestError('a line is {"prompt": ...} or {"messages": [...]}')
    return given


def parse_line(given: dict[str, Any], defaults: dict[str, Any]) -> BatchLine:
    """A line is the body of an OpenAI request, with `messages` or `prompt`; `defaults` are sampling
    fields for those it leaves out.

    Raises:
        InvalidRequestError: it has neither or both, or a wrong field.
    """
    if ("prompt" in given) == ("messages" in given):
        raise InvalidRequestError('a line has either "prompt" or "messages"')
    for field in NOT_HERE:
        if given.get(field) not in (None, False) and (field, given[field]) != ("n", 1):
            raise InvalidRequestError(
                f"{field} is not for batch files: each line gets one answer, as text", param=field
            )
    if given.get("max_completion_tokens") is not None:
        defaults = {name: v for name, v in defaults.items() if name != "max_tokens"}
    body_json = json.dumps({"model": "", **defaults, **given})
    try:
        if "messages" in given:
            chat = ChatBody.model_validate_json(body_json)
            messages = template_messages(chat.messages)
            return BatchLine(chat.sampling_params(), messages=messages)
        body = CompletionBody.model_validate_json(body_json)
    except ValidationError as error:
        raise invalid_request(error) from None
    if len(body.prompts) != 1:
        raise InvalidRequestError("prompt holds several prompts; write one a line", param="prompt")
    return BatchLine(body.sampling_params(), body.prompts[0])


async def run_batch(
    engine: LocalEngine,
    batch: BatchFile,
    defaults: dict[str, Any],
    on_result: Callable[[Result], None],
) -> None:
    """Answer every unfinished line; a line that fails gets a result with an `error`.

    Raises:
        EngineDeadError: the engine process died. What is done is kept; run again to go on.
    """
    lines = batch.unfinished()
    # Twice what runs together, so that the engine always finds the next one waiting.
    workers = min(2 * engine.ready.max_running_requests, engine.ready.max_waiting_requests)

    async def work(unanswered: Iterator[tuple[int, bytes]]) -> None:
        for number, line in unanswered:  # shared: each worker takes the next
            result = await _answer(engine, number, line, defaults)
            batch.add(number, result)
            on_result(result)

    await asyncio.gather(*(work(lines) for _ in range(workers)))


async def _answer(
    engine: LocalEngine, number: int, line: bytes, defaults: dict[str, Any]
) -> Result:
    identity: Result = {}
    try:
        given = read_line(line)
        if (own_id := given.pop("id", None)) is not None:
            identity = {"id": own_id}
        parsed = parse_line(given, defaults)
        prompt = _token_ids(engine, parsed)
        output = OutputText(engine.tokenizer, parsed.params, continues_text=parsed.messages is None)
        text, tokens, reason = [], 0, None
        request = EngineRequest(f"line-{number}", prompt, parsed.params)
        async with aclosing(engine.client.generate(request)) as deltas:
            async for delta in deltas:
                piece = output.push(delta)
                text.append(piece.text)
                tokens += len(delta.new_token_ids)
                reason = piece.finish_reason
                if reason is not None:
                    break
    except EngineDeadError:
        raise
    except (InvalidRequestError, EngineError) as error:
        return {**identity, "error": str(error)}
    return {
        **identity,
        "text": "".join(text),
        "finish_reason": reason,
        "prompt_tokens": len(prompt),
        "completion_tokens": tokens,
    }


def _token_ids(engine: LocalEngine, line: BatchLine) -> list[int]:
    if line.messages is not None:
        return render_chat(engine.template, line.messages, [])
    if isinstance(line.prompt, str):
        return engine.tokenizer.encode(line.prompt, add_bos=engine.tokenizer.add_bos)
    return line.prompt
