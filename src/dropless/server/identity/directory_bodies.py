"""The bodies of the calls for users, service principals and groups: of SCIM, as the platform
speaks it, what means something here."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from dropless.errors import InvalidRequestError
from dropless.server.identity.principal import Grant, MemberChange
from dropless.server.identity.requests import Body, GrantText

_ONE_MEMBER = re.compile(r'members\[value eq "(.+)"\]')


class Reference(Body):
    """A member, or a group that one is a member of, by its name."""

    value: str
    display: str | None = None  # without effect


class _Resource(Body):
    """`grants` are ours: what the new one may do, for example `CAN_QUERY:dbrx`."""

    grants: tuple[GrantText, ...] = ()
    schemas: tuple[str, ...] = ()  # without effect, as the following
    external_id: str | None = Field(default=None, alias="externalId")

    def parsed_grants(self) -> list[Grant]:
        return [Grant.parse(text) for text in self.grants]


class UserBody(_Resource):
    user_name: str = Field(alias="userName")
    groups: tuple[Reference, ...] = ()
    active: Literal[True] = True
    display_name: str | None = Field(default=None, alias="displayName")  # as the following
    emails: tuple[dict[str, Any], ...] = ()
    name: dict[str, Any] | None = None

    @property
    def called(self) -> str:
        return self.user_name


class ServicePrincipalBody(_Resource):
    """`applicationId`, which is the name, or else `displayName`."""

    display_name: str = Field(alias="displayName")
    application_id: str | None = Field(default=None, alias="applicationId")
    groups: tuple[Reference, ...] = ()
    active: Literal[True] = True

    @property
    def called(self) -> str:
        return self.application_id or self.display_name


class GroupBody(_Resource):
    display_name: str = Field(alias="displayName")
    members: tuple[Reference, ...] = ()


class _Members(Body):
    members: tuple[Reference, ...]


class GroupOperation(Body):
    """`add` with members as value, or `remove` of the one that `path` names, as
    `members[value eq "bob@example.com"]`."""

    op: Literal["add", "remove"]
    path: str | None = None
    value: _Members | tuple[Reference, ...] | None = None

    def changes(self) -> list[tuple[MemberChange, str]]:
        """Raises InvalidRequestError."""
        one = _ONE_MEMBER.fullmatch(self.path or "")
        if self.op == "remove" and one and self.value is None:
            return [("remove", one[1])]
        if isinstance(self.value, _Members) and self.path is None:
            return [(self.op, member.value) for member in self.value.members]
        if isinstance(self.value, tuple) and self.path == "members":
            return [(self.op, member.value) for member in self.value]
        raise InvalidRequestError(
            "an operation on a group adds or removes members: give them as value "
            '{"members": [{"value": NAME}]}, or name one to remove by the path '
            'members[value eq "NAME"]',
            param="Operations",
        )


class GroupPatchBody(Body):
    operations: tuple[GroupOperation, ...] = Field(alias="Operations", min_length=1)
    schemas: tuple[str, ...] = ()  # without effect

    def changes(self) -> list[tuple[MemberChange, str]]:
        """Raises InvalidRequestError."""
        return [change for operation in self.operations for change in operation.changes()]
