"""The management calls for users, service principals and groups: the platform's, which speak SCIM.
An id is a name. All of it is an administrator's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from dropless.errors import InvalidRequestError, ResourceNotFoundError
from dropless.server.identity.api import admin_of, fresh_json
from dropless.server.identity.directory_bodies import (
    GroupBody,
    GroupPatchBody,
    ServicePrincipalBody,
    UserBody,
)
from dropless.server.identity.gatekeeper import Gatekeeper
from dropless.server.identity.principal import PrincipalKind
from dropless.server.identity.store_calls import B, StoreCalls
from dropless.server.limits import HttpLimits

if TYPE_CHECKING:
    from dropless.server.identity.accounts import Account, Group
    from dropless.server.identity.store import IdentityStore

_PREFIX = "/api/2.0/preview/scim/v2"
_CORE = "urn:ietf:params:scim:schemas:core:2.0:"
_LIST = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
_EQUALS = re.compile(r'(\w+) eq "(.*)"')


class DirectoryApi(StoreCalls):
    """What the calls for principals and for groups have in common."""

    async def _read(self, request: Request, kind: type[B]) -> B:
        """For an administrator, whose body is of this kind."""
        admin_of(request)
        return await super()._read(request, kind)


class PrincipalsApi(DirectoryApi):
    """Users, or service principals."""

    def __init__(self, gatekeeper: Gatekeeper, limits: HttpLimits, kind: PrincipalKind) -> None:
        super().__init__(gatekeeper, limits)
        self._kind = kind

    def router(self) -> APIRouter:
        path = "/Users" if self._kind == "user" else "/ServicePrincipals"
        router = APIRouter(prefix=_PREFIX)
        router.add_api_route(path, self.list, methods=["GET"])
        router.add_api_route(path, self.create, methods=["POST"])
        router.add_api_route(path + "/{name:path}", self.get, methods=["GET"])
        router.add_api_route(path + "/{name:path}", self.delete, methods=["DELETE"])
        return router

    async def list(self, request: Request) -> Response:
        admin_of(request)
        found = await self._ask(lambda store: store.accounts.principals())
        mine = (_principal(account) for account in found if account.kind == self._kind)
        return _page(request.query_params, mine)

    async def create(self, request: Request) -> Response:
        body: UserBody | ServicePrincipalBody
        if self._kind == "user":
            body = await self._read(request, UserBody)
        else:
            body = await self._read(request, ServicePrincipalBody)
        groups = [group.value for group in body.groups]

        def create(store: IdentityStore) -> Account:
            store.accounts.create(body.called, self._kind, body.parsed_grants(), groups)
            return store.accounts.get(body.called)

        return fresh_json(_principal(await self._ask(create)))

    async def get(self, request: Request, name: str) -> Response:
        admin_of(request)
        return fresh_json(_principal(await self._ask(lambda store: self._account(store, name))))

    async def delete(self, request: Request, name: str) -> Response:
        if admin_of(request).name == name:
            raise InvalidRequestError(
                f"{name!r} asks for this, and cannot delete itself; let another administrator do it"
            )

        def delete(store: IdentityStore) -> None:
            self._account(store, name)
            store.accounts.delete(name)

        await self._ask(delete)
        return fresh_json({})

    def _account(self, store: IdentityStore, name: str) -> Account:
        """Raises ResourceNotFoundError: there is none of this kind."""
        account = store.accounts.get(name)
        if account.kind != self._kind:
            raise ResourceNotFoundError(f"{name!r} is a {account.kind.replace('_', ' ')}")
        return account


class GroupsApi(DirectoryApi):
    def router(self) -> APIRouter:
        router = APIRouter(prefix=_PREFIX)
        router.add_api_route("/Groups", self.list, methods=["GET"])
        router.add_api_route("/Groups", self.create, methods=["POST"])
        router.add_api_route("/Groups/{name:path}", self.get, methods=["GET"])
        router.add_api_route("/Groups/{name:path}", self.change_members, methods=["PATCH"])
        router.add_api_route("/Groups/{name:path}", self.delete, methods=["DELETE"])
        return router

    async def list(self, request: Request) -> Response:
        admin_of(request)
        found = await self._ask(lambda store: store.accounts.groups())
        return _page(request.query_params, map(_group, found))

    async def create(self, request: Request) -> Response:
        body = await self._read(request, GroupBody)
        name, members = body.display_name, [member.value for member in body.members]

        def create(store: IdentityStore) -> Group:
            store.accounts.create_group(name, body.parsed_grants(), members)
            return store.accounts.group(name)

        return fresh_json(_group(await self._ask(create)))

    async def get(self, request: Request, name: str) -> Response:
        admin_of(request)
        return fresh_json(_group(await self._ask(lambda store: store.accounts.group(name))))

    async def change_members(self, request: Request, name: str) -> Response:
        changes = (await self._read(request, GroupPatchBody)).changes()

        def change(store: IdentityStore) -> Group:
            store.accounts.change_members(name, changes)
            return store.accounts.group(name)

        return fresh_json(_group(await self._ask(change)))

    async def delete(self, request: Request, name: str) -> Response:
        admin_of(request)
        await self._ask(lambda store: store.accounts.delete_group(name))
        return fresh_json({})


def _principal(account: Account) -> dict[str, Any]:
    user = account.kind == "user"
    return {
        "schemas": [_CORE + ("User" if user else "ServicePrincipal")],
        "id": account.name,
        "userName" if user else "applicationId": account.name,
        "displayName": account.name,
        "active": True,
        "groups": _references(account.groups),
        "grants": [str(grant) for grant in account.grants],
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "schemas": [_CORE + "Group"],
        "id": group.name,
        "displayName": group.name,
        "members": _references(group.members),
        "grants": [str(grant) for grant in group.grants],
    }


def _references(names: Iterable[str]) -> list[dict[str, str]]:
    return [{"value": name, "display": name} for name in names]


def _page(query: Mapping[str, str], resources: Iterable[dict[str, Any]]) -> Response:
    """Those that `filter` is true of, from `startIndex` (from 1) on, at most `count`.

    Raises InvalidRequestError.
    """
    found = list(resources)
    wanted = query.get("filter")
    if wanted is not None:
        equals = _EQUALS.fullmatch(wanted)
        if equals is None or equals[1] not in ("id", "userName", "displayName", "applicationId"):
            raise InvalidRequestError(
                f'the filter {wanted[:200]!r} is not known; write userName eq "NAME", or the same '
                "with displayName or applicationId",
                param="filter",
            )
        found = [resource for resource in found if resource.get(equals[1]) == equals[2]]
    first = _number(query, "startIndex", 1)
    page = found[max(first, 1) - 1 :][: _number(query, "count", len(found))]
    return fresh_json(
        {
            "schemas": [_LIST],
            "totalResults": len(found),
            "startIndex": first,
            "itemsPerPage": len(page),
            "Resources": page,
        }
    )


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidRequestError(f"{name} is {text[:40]!r}; it must be a number", param=name)
    return int(text)
