"""Where the answers of `dropless chat` come from: an engine of its own, or a running server."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from dropless.bench.sse_client import Endpoint, HttpError, post_events
from dropless.cli.chat_session import Message, Piece
from dropless.cli.local_engine import LocalEngine, start_local_engine
from dropless.engine.messages import EngineRequest
from dropless.engine.output import OutputText
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import DroplessError, EngineError


class EngineBackend:
    """Starts an engine process for this conversation."""

    def __init__(self, model: str | None, settings: dict[str, Any]) -> None:
        self._model = model
        self._settings = settings
        self._engine: LocalEngine | None = None
        self._ids = itertools.count()

    async def start(self) -> str:
        self._engine = await start_local_engine(self._model, self._settings)
        return self._engine.ready.model_id

    async def answer(
        self, messages: list[Message], sampling: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        assert self._engine is not None
        params = SamplingParams(**sampling)
        prompt = self._engine.template.render(messages)
        request = EngineRequest(f"chat-{next(self._ids)}", prompt, params)
        output = OutputText(self._engine.tokenizer, params)
        async with aclosing(self._engine.client.generate(request)) as deltas:
            async for delta in deltas:
                text = output.push(delta)
                yield Piece(text.text, len(delta.new_token_ids))

    async def stop(self) -> None:
        if self._engine is not None:
            await self._engine.client.stop()


class ServerBackend:
    """Talks to any OpenAI-compatible server."""

    def __init__(self, url: str, model: str | None, api_key: str | None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._api_key = api_key

    async def start(self) -> str:
        from dropless.cli.remote import served_model

        self._model = self._model or served_model(self._url, self._api_key)
        return f"{self._model} at {self._url}"

    async def answer(
        self, messages: list[Message], sampling: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        body = {
            "model": self._model,
            "messages": messages,
            **sampling,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        endpoint = Endpoint.parse(self._url, self._api_key)
        events = post_events(endpoint, "/v1/chat/completions", msgspec.json.encode(body))
        try:
            async with aclosing(events):
                async for data in events:
                    if data == b"[DONE]":
                        return
                    yield _piece(msgspec.json.decode(data))
        except (HttpError, OSError, msgspec.DecodeError) as error:
            raise EngineError(f"{self._url}: {_reason(error)}") from error

    async def stop(self) -> None:
        """The server stays."""


def _reason(error: Exception) -> str:
    """OpenAI's error message where the server sent one."""
    status, _, body = str(error).partition(": ")
    try:
        return f"{msgspec.json.decode(body)['error']['message']} ({status})"
    except (msgspec.DecodeError, LookupError, TypeError):
        return str(error)


def _piece(chunk: dict[str, Any]) -> Piece:
    """A chunk of the stream; tokens are known from the usage at the end only."""
    if "error" in chunk:
        raise DroplessError(str(chunk["error"].get("message", chunk["error"])))
    text = "".join(
        choice.get("delta", {}).get("content") or "" for choice in chunk.get("choices", [])
    )
    usage = chunk.get("usage") or {}
    return Piece(text, usage.get("completion_tokens", 0))
