"""A call for embeddings on its way through an endpoint."""

from __future__ import annotations

import base64
import time
from array import array
from typing import Any

import msgspec

from dropless.errors import InvalidRequestError
from dropless.server.asgi import Reply
from dropless.server.call import Call
from dropless.server.embeddings.body import EmbeddingBody, NamedEmbeddingBody
from dropless.server.embeddings.model import EmbeddingModel
from dropless.server.endpoints.endpoint import Endpoint, ServedEntity
from dropless.server.gates import Quotas
from dropless.server.generation import Usage


def read_embedding_body(raw: bytes, *, named: bool) -> EmbeddingBody:
    """The typed body. `named`: the path has the endpoint's name, so the body need not.

    Raises:
        ValidationError, InvalidRequestError: it is none.
    """
    return (NamedEmbeddingBody if named else EmbeddingBody).model_validate_json(raw)


async def serve_embeddings(
    call: Call,
    endpoint: Endpoint,
    entity: ServedEntity,
    body: EmbeddingBody,
    quotas: Quotas | None,
    reply: Reply,
) -> None:
    """Answer the call, and fill it in.

    Raises:
        DroplessError: it is not to be served, or cannot be now.
    """
    model = entity.engine
    assert isinstance(model, EmbeddingModel)
    call.served_entity_id, call.entity_name = entity.entity_id, entity.settings.model
    texts = await model.token_ids(body.inputs)
    tokens = sum(map(len, texts))
    if quotas is not None and call.principal is not None:
        reservation = await quotas.admit(call.principal, endpoint, tokens, 0)
        reservation.settle(0)
        reply.add_headers(reservation.headers)
    began = time.perf_counter()
    vectors = await model.embed(texts)
    call.execution_s = time.perf_counter() - began
    call.usage = Usage(prompt_tokens=tokens, completion_tokens=0, cached_tokens=0)
    call.response_body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(vector, body)}
            for index, vector in enumerate(vectors)
        ],
        "model": call.endpoint,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    await reply.body(msgspec.json.encode(call.response_body))


def _written(vector: bytes, body: EmbeddingBody) -> Any:
    if body.encoding_format == "base64":
        return base64.b64encode(vector).decode()
    return array("f", vector).tolist()


def check_endpoint(endpoint: Endpoint, api: str) -> None:
    """Raises InvalidRequestError: the endpoint's models do another thing than is asked."""
    if endpoint.embeds and api != "embeddings":
        raise InvalidRequestError(
            f"{endpoint.name!r} embeds texts and generates none: POST its texts as input to "
            "/v1/embeddings",
            param="model",
        )
    if api == "embeddings" and not endpoint.embeds:
        raise InvalidRequestError(
            f"{endpoint.name!r} generates texts and embeds none; serve all-minilm-l6-v2 for that",
            param="model",
        )
