"""The one who asks, as the rest of the server knows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, get_args

from dropless.errors import InvalidRequestError

Permission = Literal["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"]
PrincipalKind = Literal["user", "service_principal"]
MemberChange = Literal["add", "remove"]  # of a group's member

# A higher permission includes the lower ones.
_RANKS: dict[Permission, int] = {"CAN_VIEW": 0, "CAN_QUERY": 1, "CAN_MANAGE": 2}

ALL_ENDPOINTS = "*"
NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class Grant:
    """A permission on one endpoint, or on all of them (`ALL_ENDPOINTS`). CAN_MANAGE on all makes
    an administrator. As text: `CAN_QUERY` on all, `CAN_QUERY:dbrx` on one."""

    permission: Permission
    endpoint: str = ALL_ENDPOINTS

    def __str__(self) -> str:
        if self.endpoint == ALL_ENDPOINTS:
            return self.permission
        return f"{self.permission}:{self.endpoint}"

    @classmethod
    def parse(cls, text: str) -> Grant:
        """Raises InvalidRequestError."""
        permission, _, endpoint = text.partition(":")
        if permission not in get_args(Permission):
            raise InvalidRequestError(
                f"{text!r} is no grant; write CAN_VIEW, CAN_QUERY or CAN_MANAGE for all endpoints, "
                "or with an endpoint's name as CAN_QUERY:dbrx"
            )
        return cls(cast(Permission, permission), endpoint or ALL_ENDPOINTS)

    def within(self, scope: Grant) -> Grant | None:
        """What is left of this grant inside a scope; None if they share no endpoint."""
        if ALL_ENDPOINTS not in (self.endpoint, scope.endpoint) and self.endpoint != scope.endpoint:
            return None
        permission = min(self.permission, scope.permission, key=_RANKS.__getitem__)
        return Grant(
            permission, scope.endpoint if self.endpoint == ALL_ENDPOINTS else self.endpoint
        )


def narrowed(grants: Iterable[Grant], scopes: Iterable[Grant]) -> tuple[Grant, ...]:
    """What a token with these scopes may do for an owner with these grants."""
    both = [grant.within(scope) for grant in grants for scope in scopes]
    return tuple(dict.fromkeys(grant for grant in both if grant is not None))


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request belongs to. `name` is the owner of its prefix cache and of its share of the
    engine; two tokens of one user are one principal. `token_id` names the token, and is no secret.
    """

    name: str
    kind: PrincipalKind = "user"
    groups: frozenset[str] = frozenset()
    grants: tuple[Grant, ...] = ()
    token_id: str | None = None

    def can(self, permission: Permission, endpoint: str) -> bool:
        """Whether a grant gives this permission, or a higher one, on this endpoint."""
        return any(
            _RANKS[grant.permission] >= _RANKS[permission]
            for grant in self.grants
            if grant.endpoint in (endpoint, ALL_ENDPOINTS)
        )

    @property
    def is_admin(self) -> bool:
        """Who may manage every endpoint, and tokens."""
        return Grant("CAN_MANAGE") in self.grants


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a grant: a user or service principal, or a group with all its members."""

    kind: Literal["principal", "group"]
    name: str


# Everybody, while a server on the loopback address has no token store.
LOCAL = Principal("local", grants=(Grant("CAN_MANAGE"),))
# Everybody, where a server without a token store was told to be open on a public address. They
# may use it, but not change what it serves.
ANYONE = Principal("anyone", grants=(Grant("CAN_QUERY"),))


def check_name(name: str) -> None:
    """Raises InvalidRequestError: no user, service principal or group can have this name."""
    if not name or len(name) > NAME_CHARS or not name.isprintable() or name != name.strip():
        raise InvalidRequestError(
            f"{name!r} cannot be a name; use 1 to {NAME_CHARS} printable characters, for example "
            "alice@example.com"
        )
    if name in (LOCAL.name, ANYONE.name):
        raise InvalidRequestError(
            f"the name {name!r} is kept for requests without a token; choose another"
        )
