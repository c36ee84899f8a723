"""Drives any OpenAI-compatible server and records when each token arrived."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Literal

import msgspec

from dropless.bench.metrics import RequestRecord
from dropless.bench.sse_client import Endpoint, HttpError, post_events
from dropless.bench.workload import PlannedRequest, Workload
from dropless.errors import SettingsError

Api = Literal["completions", "chat"]


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def new_text(self) -> str:
        return self.text or (self.delta.content if self.delta is not None else None) or ""


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


_chunk_decoder = msgspec.json.Decoder(_Chunk)


class LoadClient:
    """Sends greedy requests that ignore the end-of-sequence token, so that every server does the
    same work. A server that does not know `ignore_eos` may end earlier; usage shows it."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api: Api = "completions",
        api_key: str | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        self._endpoint = Endpoint.parse(base, api_key)
        self._path = "/v1/completions" if api == "completions" else "/v1/chat/completions"
        self._api = api
        self._model = model
        self._timeout_s = timeout_s

    def run(
        self, workload: Workload, on_finish: Callable[[RequestRecord], None] | None = None
    ) -> list[RequestRecord]:
        """Send the whole workload; records in the order of its requests, times in seconds from
        the start. A failed request has its `error` set; nothing is raised for it."""
        if self._api == "chat" and any(not isinstance(r.prompt, str) for r in workload.requests):
            raise SettingsError("the chat API takes text; use word prompts")
        return asyncio.run(self._run(workload, on_finish))

    async def _run(
        self, workload: Workload, on_finish: Callable[[RequestRecord], None] | None
    ) -> list[RequestRecord]:
        start = time.perf_counter()
        limit = workload.concurrency or len(workload.requests)
        slots = asyncio.Semaphore(limit)

        async def send(planned: PlannedRequest) -> RequestRecord:
            async with slots:
                now = time.perf_counter() - start
                began = now if workload.arrival == "closed" else planned.due_s
                record = await self._send(planned, RequestRecord(planned.index, began), start)
            if on_finish is not None:
                on_finish(record)
            return record

        tasks = []
        for planned in workload.requests:
            wait_s = planned.due_s - (time.perf_counter() - start)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            tasks.append(asyncio.create_task(send(planned)))
        return await asyncio.gather(*tasks)

    async def _send(
        self, planned: PlannedRequest, record: RequestRecord, start: float
    ) -> RequestRecord:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._follow(planned, record, start)
        except TimeoutError:
            record.error = f"no answer within {self._timeout_s:g} s"
        except (HttpError, OSError, msgspec.DecodeError) as error:
            record.error = _message(error)
        record.end_s = record.end_s or time.perf_counter() - start
        return record

    async def _follow(self, planned: PlannedRequest, record: RequestRecord, start: float) -> None:
        """One request from the first byte to the last; fills the record."""
        ended = False
        async with aclosing(post_events(self._endpoint, self._path, self._body(planned))) as events:
            async for data in events:
                now = time.perf_counter() - start
                if data == b"[DONE]":
                    break
                chunk = _chunk_decoder.decode(data)
                if chunk.error is not None:
                    raise HttpError(chunk.error.message)
                for choice in chunk.choices:
                    if choice.new_text:
                        record.arrivals.append(now)
                    if choice.finish_reason is not None:
                        ended, record.end_s = True, now
                if chunk.usage is not None:
                    record.input_tokens = chunk.usage.prompt_tokens
                    record.output_tokens = chunk.usage.completion_tokens
        if not ended:
            raise HttpError("the stream ended without a finish_reason")
        if not record.input_tokens:  # the server reports no usage: count as planned and as seen
            record.input_tokens, record.output_tokens = planned.input_tokens, len(record.arrivals)
        if not record.arrivals and record.output_tokens:  # tokens without text, such as EOS
            record.arrivals.append(record.end_s)

    def _body(self, planned: PlannedRequest) -> bytes:
        prompt = (
            {"prompt": planned.prompt}
            if self._api == "completions"
            else {"messages": [{"role": "user", "content": planned.prompt}]}
        )
        return msgspec.json.encode(
            {
                "model": self._model,
                **prompt,
                "max_tokens": planned.output_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )


def _message(error: Exception) -> str:
    """A failure in one line; OpenAI's error body is reduced to its message."""
    text = str(error) or type(error).__name__
    status, _, body = text.partition(": ")
    try:
        parsed = msgspec.json.decode(body, type=_Chunk)
    except msgspec.DecodeError:
        return text
    return f"{status}: {parsed.error.message}" if parsed.error is not None else text
