"""One HTTP request as one or several sequences in the engine: fan out, follow, merge, measure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from dropless.engine.client import AsyncEngineClient
from dropless.engine.messages import EngineRequest, TokenDelta, TokenLogprob
from dropless.engine.output import OutputText, TextDelta
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import EngineDeadError
from dropless.server.sharing import Owner
from dropless.server.tools.definitions import ToolUse
from dropless.server.tools.output import CallingOutput
from dropless.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Choice:
    """One sequence and what is known of it so far. Times are time.time() seconds, 0 before."""

    index: int
    request: EngineRequest
    output: OutputText | CallingOutput
    num_generated: int = 0
    num_cached: int = 0
    scheduled_time: float = 0.0
    first_token_time: float = 0.0
    last_token_time: float = 0.0
    prompt_logprobs: list[TokenLogprob | None] | None = None
    dropped: bool = False  # nobody wants the rest

    def note(self, delta: TokenDelta) -> None:
        """Keep what usage and timings are made from."""
        now = time.time()
        if not self.num_generated:
            self.first_token_time = now
            self.scheduled_time = delta.scheduled_time
            self.num_cached = delta.num_cached_tokens
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        self.num_generated += len(delta.new_token_ids)
        self.last_token_time = now


class Usage(msgspec.Struct, frozen=True):
    """Tokens of the whole HTTP request: a prompt counts once, however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def body(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Timings(msgspec.Struct, frozen=True):
    """Where the time went, as the HTTP process saw it. Prefill runs from the first schedule to the
    first token, over the tokens that were not cached; decode from the first token to the last."""

    queue_ms: float
    ttft_ms: float
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    cached_tokens: int
    total_ms: float


Deltas = AsyncGenerator[tuple[Choice, TextDelta], None]
_Arrived = asyncio.Queue[tuple[Choice, TextDelta | Exception | None]]


@dataclass
class Generation:
    """The sequences of one HTTP request: n answers to each prompt, prompt after prompt."""

    engine: AsyncEngineClient
    choices: list[Choice]
    n: int
    arrival_time: float

    async def deltas(self) -> Deltas:
        """Yield every choice's text as it comes; ends when all have ended. Closing it early, or
        an error of one choice, aborts what still runs."""
        if len(self.choices) == 1:
            choice = self.choices[0]
            async with aclosing(self._follow(choice)) as stream:
                async for delta in stream:
                    yield choice, delta
            return
        async with aclosing(self._merged()) as merged:
            async for item in merged:
                yield item

    async def drop(self, choice: Choice) -> None:
        """Generate no more of this choice; the others go on."""
        choice.dropped = True
        await self.engine.abort([choice.request.request_id])

    async def _follow(self, choice: Choice) -> AsyncGenerator[TextDelta, None]:
        async with aclosing(self.engine.generate(choice.request)) as stream:
            async for delta in stream:
                choice.note(delta)
                if delta.finish_reason == "abort":
                    if choice.dropped:
                        return
                    raise EngineDeadError("the engine stops and ended this request")
                text = choice.output.push(delta)
                yield text
                if text.finish_reason is not None:
                    return

    async def _merged(self) -> Deltas:
        arrived: _Arrived = asyncio.Queue()
        tasks = []
        for first in range(0, len(self.choices), self.n):
            prefilled = asyncio.Event()
            for choice in self.choices[first : first + self.n]:
                pump = self._pump(choice, arrived, prefilled, leads=choice.index == first)
                tasks.append(asyncio.create_task(pump))
        running = len(tasks)
        try:
            while running:
                choice, item = await arrived.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield choice, item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(
        self, choice: Choice, arrived: _Arrived, prefilled: asyncio.Event, leads: bool
    ) -> None:
        """The first answer to a prompt leads; the others start when its prefill is done, so that
        they find the prompt in the prefix cache instead of computing it again beside it."""
        try:
            if not leads:
                await prefilled.wait()
            async with aclosing(self._follow(choice)) as stream:
                async for delta in stream:
                    prefilled.set()
                    arrived.put_nowait((choice, delta))
            arrived.put_nowait((choice, None))
        except Exception as error:  # raised again where the request is answered
            arrived.put_nowait((choice, error))

    @property
    def begun(self) -> bool:
        """Whether a token has come."""
        return any(choice.num_generated for choice in self.choices)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(c.request.prompt_token_ids) for c in self.choices[:: self.n])

    def max_output_tokens(self, max_model_len: int) -> int:
        """The most that all choices together may generate in a context of this length."""
        return sum(
            max_model_len - len(c.request.prompt_token_ids)
            if c.request.params.max_tokens is None
            else c.request.params.max_tokens
            for c in self.choices
        )

    def limit_output(self, tokens: int, max_model_len: int) -> None:
        """Let all choices together generate no more than so many, each the same share, but one at
        least. Before it begins."""
        if self.max_output_tokens(max_model_len) <= tokens:
            return
        share = max(1, tokens // len(self.choices))
        for choice in self.choices:
            params = choice.request.params
            if params.max_tokens is None or params.max_tokens > share:
                params = msgspec.structs.replace(
                    params, max_tokens=share, min_tokens=min(params.min_tokens, share)
                )
                choice.request = msgspec.structs.replace(choice.request, params=params)

    @property
    def execution_s(self) -> float:
        """From the first schedule of its sequences to the last token, 0 before one has come."""
        begun = [choice for choice in self.choices if choice.num_generated]
        if not begun:
            return 0.0
        last = max(choice.last_token_time for choice in begun)
        return max(0.0, last - min(choice.scheduled_time for choice in begun))

    def usage(self) -> Usage:
        leaders = self.choices[:: self.n]
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=sum(c.num_generated for c in self.choices),
            cached_tokens=sum(c.num_cached for c in leaders),
        )

    def timings(self) -> Timings:
        """Of a generation that has begun."""
        lead = self.choices[0]
        first_token = min(c.first_token_time for c in self.choices if c.num_generated)
        computed = len(lead.request.prompt_token_ids) - lead.num_cached
        decoded = sum(max(0, c.num_generated - 1) for c in self.choices)
        decode_s = max(c.last_token_time for c in self.choices) - first_token
        return Timings(
            queue_ms=_ms(lead.scheduled_time - self.arrival_time),
            ttft_ms=_ms(first_token - self.arrival_time),
            prefill_tokens_per_s=_rate(computed, lead.first_token_time - lead.scheduled_time),
            decode_tokens_per_s=_rate(decoded, decode_s),
            cached_tokens=self.usage().cached_tokens,
            total_ms=_ms(time.time() - self.arrival_time),
        )


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e3, 3)


def _rate(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 2) if tokens and seconds > 0 else None


def make_generation(
    engine: AsyncEngineClient,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    *,
    n: int,
    request_id: str,
    arrival_time: float,
    owner: Owner,
    continues_text: bool,
    tools: ToolUse | None,
) -> Generation:
    """n sequences for each prompt. With a seed, answer i of a prompt gets seed + i.
    `continues_text` says that the output continues the prompt's text (a plain completion),
    `tools` what it may call."""
    choices: list[Choice] = []
    for prompt_token_ids in prompts:
        for i in range(n):
            seed = None if params.seed is None else _wrapped(params.seed + i)
            own_params = params if n == 1 else msgspec.structs.replace(params, seed=seed)
            request = EngineRequest(
                request_id=f"{request_id}-{len(choices)}",
                prompt_token_ids=prompt_token_ids,
                params=own_params,
                arrival_time=arrival_time,
                owner=owner.name,
                priority=owner.priority,
                weight=owner.weight,
            )
            text = OutputText(tokenizer, own_params, continues_text=continues_text)
            calling = tools and CallingOutput(text, tools)
            choices.append(Choice(len(choices), request, calling or text))
    return Generation(engine, choices, n, arrival_time)


def _wrapped(seed: int) -> int:
    """Stay within 64 bits, signed."""
    return (seed + 2**63) % 2**64 - 2**63
