"""A call on its way through an endpoint: admitted, judged, answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from dropless.errors import EngineError
from dropless.server.answer import Answer
from dropless.server.apis import GenerationApi
from dropless.server.asgi import Reply
from dropless.server.call import Call
from dropless.server.endpoints.endpoint import Endpoint, ServedEntity
from dropless.server.endpoints.engines import ModelEngine
from dropless.server.gates import Gates, Reservation
from dropless.server.guardrails.gate import JudgedCall
from dropless.server.protocol import GenerationBody
from dropless.server.sharing import Owner

logger = logging.getLogger("dropless.server")


class Serving:
    """Fills in the call while it serves it. Used once."""

    def __init__(
        self,
        call: Call,
        endpoint: Endpoint,
        protocol: GenerationApi[Any],
        body: GenerationBody,
        gates: Gates,
        owner: Owner,
    ) -> None:
        self._call = call
        self._endpoint = endpoint
        self._protocol = protocol
        self._body = body
        self._gates = gates
        self._owner = owner
        self._admitted = False
        self._judged: JudgedCall[Any] | None = None
        self._reservation: Reservation | None = None
        self._answer: Answer[Any] | None = None

    async def run(self, candidates: Sequence[ServedEntity], reply: Reply) -> None:
        """Let the first candidate answer, and the next one if it fails before its first token.

        Raises:
            EngineError: what the last one failed with.
            DroplessError: the call is not to be served.
        """
        *others, last = candidates
        try:
            for entity in others:
                try:
                    return await self._run(entity, reply)
                except EngineError as error:
                    if self._begun:
                        raise
                    request_id = self._call.request_id
                    logger.warning("%s falls back from %s: %s", request_id, entity.name, error)
            return await self._run(last, reply)
        finally:
            self._end()

    @property
    def _begun(self) -> bool:
        return self._answer is not None and self._answer.generation.begun

    async def _run(self, entity: ServedEntity, reply: Reply) -> None:
        self._answer = None
        self._call.served_entity_id = entity.entity_id
        self._call.entity_name = entity.settings.model
        answer = self._answer = await self._prepare(entity)
        if self._reservation is not None:
            max_model_len = _engine(entity).ready().max_model_len
            answer.generation.limit_output(self._reservation.output_tokens, max_model_len)
            reply.add_headers(self._reservation.headers)
        generation = answer.generation
        if self._judged is None:
            deltas = generation.deltas()
        else:
            deltas = self._judged.output(generation, streams=bool(self._body.stream))
        if not self._body.stream:
            return await reply.body(msgspec.json.encode(await answer.body(deltas)))
        async with aclosing(answer.chunks(deltas)) as chunks:
            async for chunk in chunks:
                await reply.events(chunk)
        return await reply.end()

    async def _prepare(self, entity: ServedEntity) -> Answer[Any]:
        """The entity's answer, not begun yet. The first one's is what the call is admitted by."""
        answer = await self._answer_of(entity)
        if self._admitted:
            return answer
        self._admitted = True
        quotas, guardrails = self._gates.quotas, self._gates.guardrails
        if quotas is not None and self._call.principal is not None:
            generation = answer.generation
            most = generation.max_output_tokens(_engine(entity).ready().max_model_len)
            self._reservation = await quotas.admit(
                self._call.principal, self._endpoint, generation.prompt_tokens, most
            )
        if guardrails is not None:
            began = time.time()
            self._judged = await guardrails.judge(self._call, self._endpoint, self._body)
            if self._judged is not None:
                self._call.checks.append(("guardrails", began, time.time()))
        if self._judged is None or self._judged.body is self._body:
            return answer
        self._body = self._judged.body
        return await self._answer_of(entity)

    async def _answer_of(self, entity: ServedEntity) -> Answer[Any]:
        return await self._protocol.answer(
            self._call, self._endpoint, _engine(entity), self._body, self._owner
        )

    def _end(self) -> None:
        answer, call = self._answer, self._call
        generated = 0
        if answer is not None:
            call.usage = answer.usage()
            generated = call.usage.completion_tokens
            if answer.generation.begun:
                call.timings = answer.generation.timings()
                call.execution_s = answer.generation.execution_s
            if answer.generation.begun or (self._judged is not None and self._judged.refused):
                call.response_body = answer.so_far()
        if self._reservation is not None:
            self._reservation.settle(generated)


def _engine(entity: ServedEntity) -> ModelEngine:
    """Of an entity that generates: the gateway has seen to that."""
    assert isinstance(entity.engine, ModelEngine)
    return entity.engine
