"""The management calls for tokens, permissions and browser sessions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, get_args

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from dropless.errors import AuthenticationError, PermissionDeniedError
from dropless.server.identity.principal import (
    ALL_ENDPOINTS,
    Grant,
    Holder,
    Permission,
    Principal,
    PrincipalKind,
)
from dropless.server.identity.requests import (
    CreateTokenBody,
    DeleteTokenBody,
    OnBehalfOfBody,
    PermissionsBody,
)
from dropless.server.identity.secret import SESSION_S
from dropless.server.identity.store_calls import StoreCalls

if TYPE_CHECKING:
    from dropless.server.identity.tokens import TokenInfo

_ABOUT: dict[Permission, str] = {
    "CAN_VIEW": "see the endpoint and what it serves",
    "CAN_QUERY": "send requests to it",
    "CAN_MANAGE": "change it, and who may do what with it",
}


class IdentityApi(StoreCalls):
    """A person sees and revokes their own tokens; all else needs CAN_MANAGE: on all endpoints for
    tokens, on the one in question for permissions."""

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api/2.0")
        add = router.add_api_route
        add("/token/create", self.create_token, methods=["POST"])
        add("/token/list", self.own_tokens, methods=["GET"])
        add("/token/delete", self.delete_token, methods=["POST"])
        managed = "/token-management"
        add(f"{managed}/on-behalf-of/tokens", self.create_token_for, methods=["POST"])
        add(f"{managed}/tokens", self.all_tokens, methods=["GET"])
        add(f"{managed}/tokens/{{token_id}}", self.one_token, methods=["GET"])
        add(f"{managed}/tokens/{{token_id}}", self.delete_one_token, methods=["DELETE"])
        endpoint = "/permissions/serving-endpoints/{name:path}"
        add(f"{endpoint}/permissionLevels", self.permission_levels, methods=["GET"])
        add(endpoint, self.permissions, methods=["GET"])
        add(endpoint, self.replace_permissions, methods=["PUT"])
        add(endpoint, self.add_permissions, methods=["PATCH"])
        add("/session", self.log_in, methods=["POST"])
        add("/session", self.who_am_i, methods=["GET"])
        add("/session", self.log_out, methods=["DELETE"])
        return router

    async def create_token(self, request: Request) -> Response:
        body = await self._read(request, CreateTokenBody)
        return await self._create(request, body, body.user_name)

    async def create_token_for(self, request: Request) -> Response:
        body = await self._read(request, OnBehalfOfBody)
        return await self._create(request, body, body.application_id)

    async def _create(self, request: Request, body: CreateTokenBody, owner: str | None) -> Response:
        caller = admin_of(request)
        token, info = await self._ask(
            lambda store: store.tokens.create(
                owner or caller.name,
                created_by=caller.name,
                comment=body.comment,
                lifetime_s=body.lifetime_seconds,
                scopes=body.grants(),
            )
        )
        return fresh_json({"token_value": token.value, "token_info": _token(info)})

    async def own_tokens(self, request: Request) -> Response:
        caller = _caller(request)
        infos = await self._ask(lambda store: store.tokens.list(caller.name))
        return fresh_json({"token_infos": [_token(info) for info in infos]})

    async def delete_token(self, request: Request) -> Response:
        body = await self._read(request, DeleteTokenBody)
        caller = _caller(request)
        owner = None if caller.is_admin else caller.name
        await self._ask(lambda store: store.tokens.revoke(body.token_id, owner))
        return fresh_json({})

    async def all_tokens(
        self, request: Request, created_by_username: str | None = None
    ) -> Response:
        admin_of(request)
        infos = await self._ask(lambda store: store.tokens.list())
        if created_by_username is not None:
            infos = tuple(info for info in infos if info.created_by == created_by_username)
        return fresh_json({"token_infos": [_managed_token(info) for info in infos]})

    async def one_token(self, request: Request, token_id: str) -> Response:
        admin_of(request)
        info = await self._ask(lambda store: store.tokens.get(token_id))
        return fresh_json({"token_info": _managed_token(info)})

    async def delete_one_token(self, request: Request, token_id: str) -> Response:
        admin_of(request)
        await self._ask(lambda store: store.tokens.revoke(token_id))
        return fresh_json({})

    async def permission_levels(self, request: Request, name: str) -> Response:
        _manager(request, name)
        levels = [
            {"permission_level": level, "description": _ABOUT[level]}
            for level in get_args(Permission)
        ]
        return fresh_json({"permission_levels": levels})

    async def permissions(self, request: Request, name: str) -> Response:
        _manager(request, name)
        return await self._permissions(name)

    async def replace_permissions(self, request: Request, name: str) -> Response:
        body = await self._read(request, PermissionsBody)
        _manager(request, name)
        await self._ask(lambda store: store.accounts.replace_grants_on(name, body.permissions()))
        return await self._permissions(name)

    async def add_permissions(self, request: Request, name: str) -> Response:
        body = await self._read(request, PermissionsBody)
        _manager(request, name)
        await self._ask(lambda store: store.accounts.add_grants_on(name, body.permissions()))
        return await self._permissions(name)

    async def _permissions(self, name: str) -> Response:
        held = await self._ask(lambda store: store.accounts.grants_on(name))
        entries: dict[Holder, dict[str, Any]] = {}
        for holder, kind, grant in held:
            entry = entries.setdefault(
                holder, {_holder_field(kind): holder.name, "all_permissions": []}
            )
            entry["all_permissions"].append(_permission(grant, name))
        return fresh_json(
            {
                "object_id": f"/serving-endpoints/{name}",
                "object_type": "serving-endpoint",
                "access_control_list": list(entries.values()),
            }
        )

    async def log_in(self, request: Request) -> Response:
        """A cookie for the token that the request itself came with."""
        caller = _caller(request)
        await self._gatekeeper.authenticator()
        if "authorization" not in request.headers or caller.token_id is None:
            raise AuthenticationError("send the token to log in with as `Authorization: Bearer`")
        response = fresh_json(self._session(caller))
        secret = self._gatekeeper.secret
        self._set_cookie(request, response, secret.seal_session(caller.token_id, time.time()))
        return response

    async def who_am_i(self, request: Request) -> Response:
        return fresh_json(self._session(_caller(request)))

    async def log_out(self, request: Request) -> Response:
        response = fresh_json({})
        self._set_cookie(request, response, "")
        return response

    def _session(self, caller: Principal) -> dict[str, Any]:
        return {
            "name": caller.name,
            "kind": caller.kind,
            "groups": sorted(caller.groups),
            "grants": [str(grant) for grant in caller.grants],
            "is_admin": caller.is_admin,
            "needs_token": self._gatekeeper.closed,
        }

    def _set_cookie(self, request: Request, response: Response, value: str) -> None:
        response.set_cookie(
            self._gatekeeper.secret.cookie_name,
            value,
            max_age=SESSION_S if value else 0,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )


def _caller(request: Request) -> Principal:
    principal: Principal = request.scope["principal"]
    return principal


def admin_of(request: Request) -> Principal:
    """Who asks. Raises PermissionDeniedError: no administrator."""
    caller = _caller(request)
    if not caller.is_admin:
        raise PermissionDeniedError(f"{caller.name} needs CAN_MANAGE on all endpoints for this")
    return caller


def _manager(request: Request, endpoint: str) -> None:
    caller = _caller(request)
    if not caller.can("CAN_MANAGE", endpoint):
        raise PermissionDeniedError(f"{caller.name} needs CAN_MANAGE on {endpoint!r} for this")


def _token(info: TokenInfo) -> dict[str, Any]:
    return {
        "token_id": info.token_id,
        "creation_time": info.created_at,
        "expiry_time": -1 if info.expires_at is None else info.expires_at,
        "comment": info.comment,
        "scopes": [str(scope) for scope in info.scopes],
    }


def _managed_token(info: TokenInfo) -> dict[str, Any]:
    return {
        **_token(info),
        "created_by_username": info.created_by,
        "owner_username": info.owner,
        "last_used_day": info.last_used_at,
    }


def _holder_field(kind: PrincipalKind | None) -> str:
    if kind is None:
        return "group_name"
    return "user_name" if kind == "user" else "service_principal_name"


def _permission(grant: Grant, endpoint: str) -> dict[str, Any]:
    found: dict[str, Any] = {"permission_level": grant.permission, "inherited": False}
    if grant.endpoint == ALL_ENDPOINTS != endpoint:
        found |= {"inherited": True, "inherited_from_object": ["/serving-endpoints/"]}
    return found


def fresh_json(value: dict[str, Any]) -> Response:
    """Nobody keeps it: some of these answers are secrets."""
    return Response(
        msgspec.json.encode(value),
        media_type="application/json",
        headers={"cache-control": "no-store"},
    )
