"""The protocols that an endpoint answers: a typed body becomes prompt ids, and they an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from dropless.engine.sampling_params import SamplingParams
from dropless.server.answer import Answer, Envelope
from dropless.server.call import Call
from dropless.server.chat_answer import ChatAnswer
from dropless.server.chat_messages import template_messages
from dropless.server.completion_answer import CompletionAnswer
from dropless.server.endpoints.endpoint import Endpoint
from dropless.server.endpoints.engines import ModelEngine
from dropless.server.generation import Generation, make_generation
from dropless.server.prompts import check_prompt
from dropless.server.protocol import (
    MAX_CHAT_CHOICES,
    MAX_COMPLETION_CHOICES,
    ChatBody,
    CompletionBody,
    GenerationBody,
    NamedChatBody,
    NamedCompletionBody,
)
from dropless.server.sharing import Owner
from dropless.server.tools.definitions import ToolUse

B = TypeVar("B", bound=GenerationBody)


class GenerationApi(ABC, Generic[B]):
    """One protocol of OpenAI's. Every method raises errors of `dropless.errors`."""

    body: type[B]
    named_body: type[B]  # of a path that names the endpoint

    def read(self, raw: bytes, *, named: bool) -> B:
        """The typed body. `named`: the path has the endpoint's name, so the body need not.

        Raises:
            ValidationError, InvalidRequestError: it is none.
        """
        kind = self.named_body if named else self.body
        return kind.model_validate_json(raw)

    @abstractmethod
    async def answer(
        self, call: Call, endpoint: Endpoint, engine: ModelEngine, body: B, owner: Owner
    ) -> Answer[Any]:
        """The answer of this engine, not begun yet.

        Raises:
            EngineDeadError: the model is still loading.
            InvalidRequestError: the body cannot be served by this model.
        """


class ChatApi(GenerationApi[ChatBody]):
    body = ChatBody
    named_body = NamedChatBody

    async def answer(
        self, call: Call, endpoint: Endpoint, engine: ModelEngine, body: ChatBody, owner: Owner
    ) -> Answer[Any]:
        engine.ready()
        params = body.sampling_params()
        n = body.choices(MAX_CHAT_CHOICES)
        messages = template_messages(body.messages)
        if messages[0]["role"] != "system":
            messages = [*_system(endpoint), *messages]
        use = body.tool_use()
        tools = [] if use is None else [tool.for_template() for tool in use.offered]
        prompt = await engine.encoder.chat(messages, tools)
        generation = _generation(
            call, engine, [prompt], params, n, owner, param="messages", tools=use
        )
        envelope = _envelope(call, body, "chatcmpl")
        return ChatAnswer(
            generation,
            envelope,
            engine.names,
            logprobs=bool(body.logprobs),
            may_call=use is not None,
        )


class CompletionApi(GenerationApi[CompletionBody]):
    body = CompletionBody
    named_body = NamedCompletionBody

    async def answer(
        self,
        call: Call,
        endpoint: Endpoint,
        engine: ModelEngine,
        body: CompletionBody,
        owner: Owner,
    ) -> Answer[Any]:
        params = body.sampling_params()
        n = body.choices(MAX_COMPLETION_CHOICES)
        prompts = await _prompts(endpoint, engine, body)
        continues = body.use_raw_prompt is not False
        generation = _generation(
            call, engine, prompts, params, n, owner, param="prompt", continues_text=continues
        )
        return CompletionAnswer(
            generation,
            _envelope(call, body, "cmpl"),
            engine.names,
            logprobs=body.logprobs,
            echo=engine.encoder.prompt_texts(body.prompts) if body.echo else None,
            prompt_only=body.prompt_only,
            prompt_logprobs=body.prompt_logprobs is not None,
        )


def _system(endpoint: Endpoint) -> list[dict[str, str]]:
    """The endpoint's own system message, if it has one."""
    prompt = endpoint.settings.system_prompt
    return [] if prompt is None else [{"role": "system", "content": prompt}]


async def _prompts(
    endpoint: Endpoint, engine: ModelEngine, body: CompletionBody
) -> list[list[int]]:
    """What the model sees for each prompt."""
    max_model_len = engine.ready().max_model_len
    texts = [prompt for prompt in body.prompts if isinstance(prompt, str)]
    if body.suffix:
        return await engine.encoder.infill(texts, body.suffix)
    if body.use_raw_prompt is False:
        return await engine.encoder.instructed(texts, _system(endpoint))
    prompts = await engine.encoder.completion(body.prompts)
    if not body.truncates:
        return prompts
    room = max_model_len - (body.sampling_params().max_tokens or 1)
    return [engine.encoder.truncated(prompt, room) for prompt in prompts]


def _generation(
    call: Call,
    engine: ModelEngine,
    prompts: list[list[int]],
    params: SamplingParams,
    n: int,
    owner: Owner,
    *,
    param: str,
    continues_text: bool = False,
    tools: ToolUse | None = None,
) -> Generation:
    ready = engine.ready()
    for token_ids in prompts:
        check_prompt(
            token_ids,
            param=param,
            max_tokens=params.max_tokens,
            max_model_len=ready.max_model_len,
            vocab_size=ready.vocab_size,
        )
    return make_generation(
        engine.client,
        engine.tokenizer,
        prompts,
        params,
        n=n,
        request_id=call.request_id,
        arrival_time=call.arrival_time,
        owner=owner,
        continues_text=continues_text,
        tools=tools,
    )


def _envelope(call: Call, body: GenerationBody, prefix: str) -> Envelope:
    return Envelope(
        response_id=f"{prefix}-{call.request_id.removeprefix('req-')}",
        created=int(call.arrival_time),
        model=call.endpoint,
        include_usage=body.include_usage,
        include_timings=bool(body.include_timings),
    )
