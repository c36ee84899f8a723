"""The bodies of the management calls for tokens and permissions, in the platform's shape."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from dropless.errors import InvalidRequestError
from dropless.server.identity.principal import Grant, Holder, Permission


def _grant(text: str) -> str:
    try:
        return str(Grant.parse(text))
    except InvalidRequestError as error:
        raise PydanticCustomError("grant", "{why}", {"why": str(error)}) from error


GrantText = Annotated[str, AfterValidator(_grant)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class CreateTokenBody(Body):
    """`scopes` narrow the token to grants, for example `CAN_QUERY:dbrx`. `user_name` is ours: whose
    token it is, if not the caller's."""

    comment: str = ""
    lifetime_seconds: int | None = None
    scopes: tuple[GrantText, ...] = ()
    user_name: str | None = None

    def grants(self) -> list[Grant]:
        return [Grant.parse(scope) for scope in self.scopes]


class OnBehalfOfBody(CreateTokenBody):
    """`application_id` is the name of the service principal."""

    application_id: str


class DeleteTokenBody(Body):
    token_id: str


class AccessControl(Body):
    """One line of an access control list: who, and what they may do."""

    user_name: str | None = None
    group_name: str | None = None
    service_principal_name: str | None = None
    permission_level: Permission

    @model_validator(mode="after")
    def _names_one(self) -> AccessControl:
        names = (self.user_name, self.group_name, self.service_principal_name)
        if sum(name is not None for name in names) != 1:
            raise PydanticCustomError(
                "holder", "give one of user_name, group_name and service_principal_name"
            )
        return self

    @property
    def holder(self) -> Holder:
        if self.group_name is not None:
            return Holder("group", self.group_name)
        return Holder("principal", self.user_name or self.service_principal_name or "")


class PermissionsBody(Body):
    access_control_list: tuple[AccessControl, ...] = ()

    def permissions(self) -> dict[Holder, Permission]:
        return {entry.holder: entry.permission_level for entry in self.access_control_list}
