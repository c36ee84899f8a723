"""The one who asks, as the rest of the server knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Permission = Literal["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"]

# A higher permission includes the lower ones.
_RANKS: dict[Permission, int] = {"CAN_VIEW": 0, "CAN_QUERY": 1, "CAN_MANAGE": 2}

ALL_ENDPOINTS = "*"


@dataclass(frozen=True, slots=True)
class Grant:
    """A permission on one endpoint, or on all of them (`ALL_ENDPOINTS`). CAN_MANAGE on all makes
    an administrator."""

    permission: Permission
    endpoint: str = ALL_ENDPOINTS


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request belongs to. `name` is the owner of its prefix cache and of its share of the
    engine; two tokens of one user are one principal. `token_id` names the token, and is no secret.
    """

    name: str
    kind: Literal["user", "service_principal"] = "user"
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


# Everybody, while a server on the loopback address has no token store.
LOCAL = Principal("local", grants=(Grant("CAN_MANAGE"),))
