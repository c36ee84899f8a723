"""Users, service principals and groups in the store, and what they may do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dropless.errors import ConflictError, ResourceNotFoundError
from dropless.server.identity.database import Database
from dropless.server.identity.principal import (
    ALL_ENDPOINTS,
    Grant,
    Holder,
    MemberChange,
    Permission,
    PrincipalKind,
    check_name,
)
from dropless.server.identity.schema import (
    GrantRow,
    GroupRow,
    MembershipRow,
    PrincipalRow,
)


@dataclass(frozen=True, slots=True)
class Account:
    """A user or service principal. `grants` are its own, without those of its groups."""

    name: str
    kind: PrincipalKind
    groups: tuple[str, ...]
    grants: tuple[Grant, ...]
    created_at: int  # milliseconds since 1970


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    members: tuple[str, ...]
    grants: tuple[Grant, ...]
    created_at: int  # milliseconds since 1970


class Accounts:
    """Every method may raise TokenStoreError, and none belongs on an event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        kind: PrincipalKind = "user",
        grants: Iterable[Grant] = (),
        groups: Iterable[str] = (),
    ) -> None:
        """Raises:
        InvalidRequestError: for a name that cannot be one.
        ConflictError: the name is taken.
        ResourceNotFoundError: there is no such group.
        """
        check_name(name)
        row = PrincipalRow(name=name, kind=kind, created_at=now_ms())
        try:
            with self._database.changing() as session:
                session.add(row)
                session.flush()
                _set_grants(session, Holder("principal", name), grants)
                for group in dict.fromkeys(groups):
                    _group_row(session, group)
                    session.add(MembershipRow(group_name=group, principal_name=name))
        except IntegrityError:
            raise ConflictError(f"{name!r} exists already") from None

    def delete(self, name: str) -> None:
        """With all tokens and grants. Raises ResourceNotFoundError."""
        with self._database.changing() as session:
            session.delete(principal_row(session, name))

    def principals(self) -> list[Account]:
        with self._database.reading() as session:
            rows = session.scalars(select(PrincipalRow).order_by(PrincipalRow.name)).all()
            return [_account(session, row) for row in rows]

    def get(self, name: str) -> Account:
        """Raises ResourceNotFoundError."""
        with self._database.reading() as session:
            return _account(session, principal_row(session, name))

    def create_group(
        self, name: str, grants: Iterable[Grant] = (), members: Iterable[str] = ()
    ) -> None:
        """Raises:
        InvalidRequestError: for a name that cannot be one.
        ConflictError: the name is taken.
        ResourceNotFoundError: there is no such member.
        """
        check_name(name)
        try:
            with self._database.changing() as session:
                session.add(GroupRow(name=name, created_at=now_ms()))
                session.flush()
                _set_grants(session, Holder("group", name), grants)
                for member in dict.fromkeys(members):
                    principal_row(session, member)
                    session.add(MembershipRow(group_name=name, principal_name=member))
        except IntegrityError:
            raise ConflictError(f"the group {name!r} exists already") from None

    def delete_group(self, name: str) -> None:
        """Its members stay, without what it gave them. Raises ResourceNotFoundError."""
        with self._database.changing() as session:
            session.delete(_group_row(session, name))

    def groups(self) -> list[Group]:
        with self._database.reading() as session:
            rows = session.scalars(select(GroupRow).order_by(GroupRow.name)).all()
            return [_group(session, row) for row in rows]

    def group(self, name: str) -> Group:
        """Raises ResourceNotFoundError."""
        with self._database.reading() as session:
            return _group(session, _group_row(session, name))

    def add_member(self, group: str, name: str) -> None:
        """Raises ResourceNotFoundError."""
        self.change_members(group, [("add", name)])

    def remove_member(self, group: str, name: str) -> None:
        """Raises ResourceNotFoundError: no such group, or not in it."""
        self.change_members(group, [("remove", name)])

    def change_members(self, group: str, changes: Iterable[tuple[MemberChange, str]]) -> None:
        """One after the other, and all or none. Raises ResourceNotFoundError."""
        with self._database.changing() as session:
            _group_row(session, group)
            for change, name in changes:
                if change == "add":
                    principal_row(session, name)
                    session.merge(MembershipRow(group_name=group, principal_name=name))
                    continue
                membership = session.get(MembershipRow, (group, name))
                if membership is None:
                    raise ResourceNotFoundError(f"{name!r} is not in the group {group!r}")
                session.delete(membership)
                session.flush()

    def grant(self, holder: Holder, grants: Iterable[Grant]) -> None:
        """Give these; each takes the place of the one that the holder has on its endpoint.

        Raises ResourceNotFoundError.
        """
        with self._database.changing() as session:
            _check_holder(session, holder)
            _set_grants(session, holder, grants)

    def withdraw(self, holder: Holder, endpoint: str = ALL_ENDPOINTS) -> None:
        """Take the grant on this endpoint back. Raises ResourceNotFoundError: there is none."""
        with self._database.changing() as session:
            _check_holder(session, holder)
            held = {row.endpoint: row for row in _grants(session, holder)}
            if endpoint not in held:
                on = "all endpoints" if endpoint == ALL_ENDPOINTS else repr(endpoint)
                raise ResourceNotFoundError(f"{holder.name!r} has no grant on {on} of its own")
            session.delete(held[endpoint])

    def grants_on(self, endpoint: str) -> list[tuple[Holder, PrincipalKind | None, Grant]]:
        """All that gives something on this endpoint, on all endpoints too; None: a group."""
        with self._database.reading() as session:
            wanted = GrantRow.endpoint.in_((endpoint, ALL_ENDPOINTS)) & GrantRow.token_id.is_(None)
            found = session.execute(
                select(GrantRow, PrincipalRow.kind)
                .outerjoin(PrincipalRow, PrincipalRow.name == GrantRow.principal_name)
                .where(wanted)
            )
            held = [
                (_holder(row), cast(PrincipalKind | None, kind), grant_of(row))
                for row, kind in found
            ]
        return sorted(held, key=lambda each: (each[0].kind, each[0].name, each[2].endpoint))

    def replace_grants_on(self, endpoint: str, permissions: dict[Holder, Permission]) -> None:
        """Let these be all that is given on this endpoint itself. Raises ResourceNotFoundError."""
        with self._database.changing() as session:
            mine = (GrantRow.endpoint == endpoint) & GrantRow.token_id.is_(None)
            session.execute(delete(GrantRow).where(mine))
            for holder, permission in permissions.items():
                _check_holder(session, holder)
                _set_grants(session, holder, [Grant(permission, endpoint)])

    def add_grants_on(self, endpoint: str, permissions: dict[Holder, Permission]) -> None:
        """Raises ResourceNotFoundError, and then nothing is given."""
        with self._database.changing() as session:
            for holder, permission in permissions.items():
                _check_holder(session, holder)
                _set_grants(session, holder, [Grant(permission, endpoint)])


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def principal_row(session: Session, name: str) -> PrincipalRow:
    """Raises ResourceNotFoundError."""
    row = session.get(PrincipalRow, name)
    if row is None:
        raise ResourceNotFoundError(
            f"there is no user or service principal {name!r}; `dropless users list` shows who is"
        )
    return row


def grant_of(row: GrantRow) -> Grant:
    return Grant(cast(Permission, row.permission), row.endpoint)


def _group_row(session: Session, name: str) -> GroupRow:
    row = session.get(GroupRow, name)
    if row is None:
        raise ResourceNotFoundError(
            f"there is no group {name!r}; `dropless groups list` shows those there are"
        )
    return row


def _check_holder(session: Session, holder: Holder) -> None:
    if holder.kind == "group":
        _group_row(session, holder.name)
    else:
        principal_row(session, holder.name)


def _grants(session: Session, holder: Holder) -> Sequence[GrantRow]:
    column = GrantRow.group_name if holder.kind == "group" else GrantRow.principal_name
    return session.scalars(
        select(GrantRow).where(column == holder.name).order_by(GrantRow.id)
    ).all()


def _set_grants(session: Session, holder: Holder, grants: Iterable[Grant]) -> None:
    held = {row.endpoint: row for row in _grants(session, holder)}
    for grant in grants:
        if grant.endpoint not in held:
            row = GrantRow(endpoint=grant.endpoint, permission=grant.permission)
            if holder.kind == "group":
                row.group_name = holder.name
            else:
                row.principal_name = holder.name
            session.add(row)
            held[grant.endpoint] = row
        held[grant.endpoint].permission = grant.permission


def _holder(row: GrantRow) -> Holder:
    if row.group_name is not None:
        return Holder("group", row.group_name)
    assert row.principal_name is not None
    return Holder("principal", row.principal_name)


def _account(session: Session, row: PrincipalRow) -> Account:
    groups = session.scalars(
        select(MembershipRow.group_name)
        .where(MembershipRow.principal_name == row.name)
        .order_by(MembershipRow.group_name)
    )
    grants = tuple(map(grant_of, _grants(session, Holder("principal", row.name))))
    kind = cast(PrincipalKind, row.kind)
    return Account(row.name, kind, tuple(groups), grants, row.created_at)


def _group(session: Session, row: GroupRow) -> Group:
    members = session.scalars(
        select(MembershipRow.principal_name)
        .where(MembershipRow.group_name == row.name)
        .order_by(MembershipRow.principal_name)
    )
    grants = tuple(map(grant_of, _grants(session, Holder("group", row.name))))
    return Group(row.name, tuple(members), grants, row.created_at)
