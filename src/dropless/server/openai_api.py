"""OpenAI's endpoints: typed request to prompt ids to the engine and back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from dropless.engine.client import AsyncEngineClient
from dropless.engine.messages import EngineReady
from dropless.engine.sampling_params import SamplingParams
from dropless.errors import EngineDeadError, ModelNotFoundError
from dropless.server.answer import Answer, Envelope
from dropless.server.asgi import EventStream, read_body, until_disconnected
from dropless.server.chat_answer import ChatAnswer
from dropless.server.completion_answer import CompletionAnswer
from dropless.server.generation import Generation, make_generation
from dropless.server.limits import HttpLimits
from dropless.server.logprobs import TokenNames
from dropless.server.prompts import PromptEncoder, check_prompt
from dropless.server.protocol import (
    MAX_CHAT_CHOICES,
    MAX_COMPLETION_CHOICES,
    ChatBody,
    CompletionBody,
    GenerationBody,
)
from dropless.text.chat_template import ChatTemplate
from dropless.text.tokenizer import Tokenizer

B = TypeVar("B", bound=GenerationBody)


@dataclass(frozen=True)
class ServedModel:
    """The one model that this server answers for: its name to clients and its text side."""

    model_id: str
    tokenizer: Tokenizer
    template: ChatTemplate
    created: int  # time.time() seconds


class OpenAIEndpoints:
    """The endpoints of one served model. Every method raises errors of `dropless.errors`."""

    def __init__(self, engine: AsyncEngineClient, model: ServedModel, limits: HttpLimits) -> None:
        self._engine = engine
        self._model = model
        self._limits = limits
        self._encoder = PromptEncoder(model.tokenizer, model.template)
        self._names = TokenNames(model.tokenizer)

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1")
        router.add_api_route("/models", self.models, methods=["GET"])
        router.add_api_route("/models/{model_id:path}", self.model, methods=["GET"])
        router.add_api_route("/chat/completions", self.chat, methods=["POST"])
        router.add_api_route("/completions", self.completions, methods=["POST"])
        return router

    async def models(self) -> Response:
        return json_response({"object": "list", "data": [self._model_entry()]})

    async def model(self, model_id: str) -> Response:
        self._check_model(model_id)
        return json_response(self._model_entry())

    async def chat(self, request: Request) -> Response:
        arrival_time = time.time()
        body = await self._read(request, ChatBody)
        ready = self._ready()
        params = body.sampling_params()
        n = body.choices(MAX_CHAT_CHOICES)
        prompt = await self._encoder.chat(body.template_messages())
        generation = self._generation(
            request, [prompt], params, ready, n, arrival_time, param="messages"
        )
        envelope = self._envelope(request, body, "chatcmpl", arrival_time)
        answer = ChatAnswer(generation, envelope, self._names, logprobs=bool(body.logprobs))
        return await _respond(request, answer, stream=bool(body.stream))

    async def completions(self, request: Request) -> Response:
        arrival_time = time.time()
        body = await self._read(request, CompletionBody)
        ready = self._ready()
        params = body.sampling_params()
        n = body.choices(MAX_COMPLETION_CHOICES)
        prompts = await self._encoder.completion(body.prompts)
        generation = self._generation(
            request, prompts, params, ready, n, arrival_time, param="prompt"
        )
        answer = CompletionAnswer(
            generation,
            self._envelope(request, body, "cmpl", arrival_time),
            self._names,
            logprobs=body.logprobs,
            echo=self._encoder.prompt_texts(body.prompts) if body.echo else None,
            prompt_only=body.prompt_only,
            prompt_logprobs=body.prompt_logprobs is not None,
        )
        return await _respond(request, answer, stream=bool(body.stream))

    async def _read(self, request: Request, kind: type[B]) -> B:
        limits = self._limits
        raw = await read_body(request, limits.max_body_bytes, limits.body_timeout_s)
        body = kind.model_validate_json(raw)
        self._check_model(body.model)
        return body

    def _check_model(self, name: str) -> None:
        if name != self._model.model_id:
            raise ModelNotFoundError(
                f"the model {name!r} is not served here; this server has {self._model.model_id!r}"
            )

    def _ready(self) -> EngineReady:
        if self._engine.ready is None:
            raise EngineDeadError("the model is still loading", retry_after_s=1.0)
        return self._engine.ready

    def _generation(
        self,
        request: Request,
        prompts: list[list[int]],
        params: SamplingParams,
        ready: EngineReady,
        n: int,
        arrival_time: float,
        *,
        param: str,
    ) -> Generation:
        for token_ids in prompts:
            check_prompt(
                token_ids,
                param=param,
                max_tokens=params.max_tokens,
                max_model_len=ready.max_model_len,
                vocab_size=ready.vocab_size,
            )
        return make_generation(
            self._engine,
            self._model.tokenizer,
            prompts,
            params,
            n=n,
            request_id=request.scope["request_id"],
            arrival_time=arrival_time,
            continues_text=param == "prompt",
        )

    def _envelope(
        self, request: Request, body: GenerationBody, prefix: str, arrival_time: float
    ) -> Envelope:
        unique = request.scope["request_id"].removeprefix("req-")
        return Envelope(
            response_id=f"{prefix}-{unique}",
            created=int(arrival_time),
            model=self._model.model_id,
            include_usage=body.include_usage,
            include_timings=bool(body.include_timings),
        )

    def _model_entry(self) -> dict[str, Any]:
        ready = self._engine.ready
        return {
            "id": self._model.model_id,
            "object": "model",
            "created": self._model.created,
            "owned_by": "dropless",
            "max_model_len": None if ready is None else ready.max_model_len,
        }


async def _respond(request: Request, answer: Answer, *, stream: bool) -> Response:
    if stream:
        return EventStream(answer.chunks())
    return json_response(await until_disconnected(request.receive, answer.body()))


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
