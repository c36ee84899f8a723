"""The way of every call: what is asked, who may, which model answers, who is told."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from dropless.errors import (
    DroplessError,
    EngineDeadError,
    ModelNotFoundError,
    PermissionDeniedError,
)
from dropless.server.apis import ChatApi, CompletionApi, GenerationApi
from dropless.server.asgi import STOPPING, Reply, event, read_body, until_disconnected
from dropless.server.call import Api, Call, CallObserver
from dropless.server.embeddings.body import EmbeddingBody
from dropless.server.embeddings.serving import (
    check_endpoint,
    read_embedding_body,
    serve_embeddings,
)
from dropless.server.endpoints.endpoint import Endpoint
from dropless.server.endpoints.registry import EndpointRegistry
from dropless.server.errors import (
    HttpError,
    is_bug,
    is_platform_path,
    log_unexpected,
    to_http_error,
)
from dropless.server.gates import Gates, Quotas
from dropless.server.guardrails.gate import Guardrails
from dropless.server.identity.principal import Permission, Principal
from dropless.server.limits import HttpLimits
from dropless.server.protocol import GenerationBody
from dropless.server.serving import Serving
from dropless.server.sharing import Owner, SharingSettings

_TRACE_HEADERS = frozenset({"traceparent", "tracestate"})


class Gateway:
    """Serves calls to the endpoints of a registry, whatever path they come by. `owner_of` gives
    what salts a principal's prefix cache, `sharing` its share of the engines; `seed` makes the
    traffic split repeatable."""

    def __init__(
        self,
        registry: EndpointRegistry,
        limits: HttpLimits,
        *,
        observers: Sequence[CallObserver] = (),
        quotas: Quotas | None = None,
        guardrails: Guardrails | None = None,
        owner_of: Callable[[Principal], str],
        sharing: SharingSettings | None = None,
        seed: int | None = None,
    ) -> None:
        self.registry = registry
        self.limits = limits
        self._observers = observers
        self._gates = Gates(quotas, guardrails)
        self._chance = random.Random(seed)
        self._owner_of = owner_of
        self._sharing = sharing or SharingSettings()
        self._apis: Mapping[Api, GenerationApi[Any]] = {
            "chat": ChatApi(),
            "completions": CompletionApi(),
        }

    @property
    def quotas(self) -> Quotas | None:
        return self._gates.quotas

    def endpoint(self, principal: Principal, name: str, permission: Permission) -> Endpoint:
        """The endpoint of this name.

        Raises:
            PermissionDeniedError: the principal may not do this there, whether it exists or not.
            EngineDeadError: it is being made.
            ModelNotFoundError: there is none; the message lists those that the principal sees.
        """
        self.check_permission(principal, name, permission)
        endpoint = self.registry.get(name)
        if endpoint is None and name in self.registry.coming:
            raise EngineDeadError(f"the models of {name!r} are still loading", retry_after_s=1.0)
        if endpoint is None:
            seen = ", ".join(repr(e.name) for e in self.visible_to(principal)) or "none"
            raise ModelNotFoundError(
                f"the model {name!r} is not served here; this server has {seen}"
            )
        return endpoint

    def check_permission(self, principal: Principal, name: str, permission: Permission) -> None:
        """Raises PermissionDeniedError."""
        if not principal.can(permission, name):
            raise PermissionDeniedError(
                f"{principal.name} needs {permission} on {name!r}; ask who manages it"
            )

    def visible_to(self, principal: Principal) -> list[Endpoint]:
        return [e for e in self.registry.list() if principal.can("CAN_VIEW", e.name)]

    async def serve(
        self, scope: Scope, receive: Receive, send: Send, api: Api | None, name: str | None
    ) -> None:
        """One call, from its request line to its answer's last byte, as an ASGI application.

        Args:
            api: the protocol that the body speaks; None: as its fields tell.
            name: the endpoint, if the path has it; else the body's `model` says it.
        """
        call = Call(
            request_id=scope["request_id"],
            arrival_time=time.time(),
            api=api or "chat",
            principal=scope_principal(scope),
            endpoint=name or "",
        )
        scope["call"] = call
        headers = Headers(scope=scope).items()
        call.sent_headers = {key: text for key, text in headers if key in _TRACE_HEADERS}
        for observer in self._observers:
            observer.began(call)
        reply = Reply(send)
        reply.add_headers(call.answer_headers)
        try:
            await self._serve(call, Request(scope, receive), reply, api, name)
            call.status_code = 200
        except ClientDisconnect as error:
            _note_error(call, error)
            raise
        except asyncio.CancelledError:  # the server stops, and the time to finish is over
            await _send_error(call, STOPPING, scope, receive, send, reply)
        except Exception as error:
            if is_bug(error):
                log_unexpected(error, call.request_id)
            await _send_error(call, error, scope, receive, send, reply)
        finally:
            call.end_time = time.time()
            for observer in self._observers:
                observer.ended(call)

    async def _serve(
        self, call: Call, request: Request, reply: Reply, api: Api | None, name: str | None
    ) -> None:
        limits = self.limits
        raw = await read_body(request, limits.max_body_bytes, limits.body_timeout_s)
        call.request_body = raw
        call.api = api or _api_of(raw)
        read = read_embedding_body if call.api == "embeddings" else self._apis[call.api].read
        body: EmbeddingBody | GenerationBody = read(raw, named=name is not None)
        call.endpoint = name or body.model
        call.client_request_id = body.client_request_id
        call.usage_context = body.usage_context or {}
        principal = scope_principal(request.scope)
        endpoint = self.endpoint(principal, call.endpoint, "CAN_QUERY")
        for observer in self._observers:
            observer.accepted(call)
        check_endpoint(endpoint, call.api)
        candidates = endpoint.candidates(self._chance)
        if isinstance(body, EmbeddingBody):
            work = serve_embeddings(call, endpoint, candidates[0], body, self._gates.quotas, reply)
        else:
            share = self._sharing.of(principal)
            owner = Owner(self._owner_of(principal), share.priority, share.weight)
            serving = Serving(call, endpoint, self._apis[call.api], body, self._gates, owner)
            work = serving.run(candidates, reply)
        with endpoint.held():
            await until_disconnected(request.receive, work)

    def refused(self, request_id: str, api: Api, endpoint: str, error: DroplessError) -> None:
        """A call that was turned away at the door, of which only the request line is known: those
        who watch see it too."""
        now = time.time()
        call = Call(request_id, now, api, principal=None, endpoint=endpoint)
        for observer in self._observers:
            observer.began(call)
        _note_error(call, error)
        call.end_time = now
        for observer in self._observers:
            observer.ended(call)


def scope_principal(scope: Scope) -> Principal:
    """Who asks, as the door has found out. There is none on a path that is open to everybody."""
    principal: Principal = scope["principal"]
    return principal


class _Fields(msgspec.Struct):
    """The fields that tell the protocols apart, unread; empty where a body has them not."""

    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


def _api_of(raw: bytes) -> Api:
    """The protocol of a body that comes by a path for all of them."""
    try:
        fields = msgspec.json.decode(raw, type=_Fields)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "chat"  # whose reader says what is wrong
    if bytes(fields.messages):
        return "chat"
    if bytes(fields.prompt):
        return "completions"
    return "embeddings" if bytes(fields.input) else "chat"


def _note_error(call: Call, error: BaseException) -> HttpError:
    seen = to_http_error(error)
    call.status_code = seen.status
    call.error = seen.message
    return seen


async def _send_error(
    call: Call, error: BaseException, scope: Scope, receive: Receive, send: Send, reply: Reply
) -> None:
    """With its own status, or as the last event of a stream that has begun."""
    seen = _note_error(call, error)
    if reply.started:
        await reply.events(event(seen.body()))
        await reply.end()
        return
    platform = is_platform_path(scope["path"])
    call.response_body = seen.platform_body() if platform else seen.body()
    response = seen.response(platform)
    response.headers.update(call.answer_headers)
    await response(scope, receive, send)
