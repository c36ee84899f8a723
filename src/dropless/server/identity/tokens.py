"""Personal access tokens in the store."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from dropless.errors import InvalidRequestError, ResourceNotFoundError
from dropless.server.identity.accounts import grant_of, now_ms, principal_row
from dropless.server.identity.database import Database
from dropless.server.identity.principal import Grant, Principal, PrincipalKind, narrowed
from dropless.server.identity.schema import (
    COMMENT_CHARS,
    GrantRow,
    MembershipRow,
    PrincipalRow,
    TokenRow,
)
from dropless.server.identity.token import Token

MAX_LIFETIME_S = 10 * 365 * 86400


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """All that is known of a token but its secret. Times are milliseconds since 1970.
    No `scopes`: it may do all that its owner may."""

    token_id: str
    owner: str
    owner_kind: PrincipalKind
    comment: str
    scopes: tuple[Grant, ...]
    created_by: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None


@dataclass(frozen=True, slots=True)
class KnownToken:
    """What a check of a token needs."""

    sha256: bytes
    expires_at: int | None  # milliseconds since 1970
    principal: Principal

    def matches(self, token: Token) -> bool:
        """In a time that does not depend on where the two differ."""
        return hmac.compare_digest(self.sha256, token.sha256)


class Tokens:
    """Every method may raise TokenStoreError, and none belongs on an event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        owner: str,
        *,
        created_by: str,
        comment: str = "",
        lifetime_s: int | None = None,
        scopes: Iterable[Grant] = (),
    ) -> tuple[Token, TokenInfo]:
        """The token itself is told here and never again.

        Raises:
            InvalidRequestError: a lifetime or comment out of range.
            ResourceNotFoundError: no such owner.
        """
        if lifetime_s is not None and not 1 <= lifetime_s <= MAX_LIFETIME_S:
            raise InvalidRequestError(
                f"lifetime_seconds is {lifetime_s}; it must be between 1 and {MAX_LIFETIME_S}, or "
                "left out for a token that does not expire",
                param="lifetime_seconds",
            )
        if len(comment) > COMMENT_CHARS or not comment.isprintable():
            raise InvalidRequestError(
                f"the comment must be at most {COMMENT_CHARS} printable characters",
                param="comment",
            )
        token, now = Token.new(), now_ms()
        row = TokenRow(
            token_id=token.token_id,
            sha256=token.sha256,
            principal_name=owner,
            comment=comment,
            created_by=created_by,
            created_at=now,
            expires_at=None if lifetime_s is None else now + lifetime_s * 1000,
            last_used_at=None,
        )
        with self._database.changing() as session:
            kind = cast(PrincipalKind, principal_row(session, owner).kind)
            session.add(row)
            session.flush()
            for scope in dict.fromkeys(scopes):
                session.add(
                    GrantRow(
                        token_id=row.token_id, endpoint=scope.endpoint, permission=scope.permission
                    )
                )
            session.flush()
            return token, _info(session, row, kind)

    def list(self, owner: str | None = None) -> tuple[TokenInfo, ...]:
        """The owner's, or all. Raises ResourceNotFoundError: no such owner."""
        with self._database.reading() as session:
            query = select(TokenRow, PrincipalRow.kind).join(PrincipalRow)
            if owner is not None:
                principal_row(session, owner)
                query = query.where(TokenRow.principal_name == owner)
            rows = session.execute(query.order_by(TokenRow.principal_name, TokenRow.created_at))
            return tuple(_info(session, row, cast(PrincipalKind, kind)) for row, kind in rows)

    def get(self, token_id: str) -> TokenInfo:
        """Raises ResourceNotFoundError."""
        with self._database.reading() as session:
            row = _row(session, token_id)
            kind = principal_row(session, row.principal_name).kind
            return _info(session, row, cast(PrincipalKind, kind))

    def revoke(self, token_id: str, owner: str | None = None) -> None:
        """From now on no server lets it in. With `owner`, only one of theirs.

        Raises ResourceNotFoundError.
        """
        with self._database.changing() as session:
            session.delete(_row(session, token_id, owner))

    def find(self, token_id: str) -> KnownToken | None:
        """None: there is no such token, or not any more."""
        with self._database.reading() as session:
            query = select(TokenRow, PrincipalRow.kind).join(PrincipalRow)
            found = session.execute(query.where(TokenRow.token_id == token_id)).one_or_none()
            if found is None:
                return None
            row, kind = found
            name = row.principal_name
            groups = session.scalars(
                select(MembershipRow.group_name).where(MembershipRow.principal_name == name)
            ).all()
            held = (GrantRow.principal_name == name) | GrantRow.group_name.in_(groups)
            grants = [grant_of(grant) for grant in session.scalars(select(GrantRow).where(held))]
            scopes = _scopes(session, token_id)
            principal = Principal(
                name=name,
                kind=cast(PrincipalKind, kind),
                groups=frozenset(groups),
                grants=narrowed(grants, scopes) if scopes else tuple(dict.fromkeys(grants)),
                token_id=token_id,
            )
            return KnownToken(row.sha256, row.expires_at, principal)

    def note_used(self, used_at: Mapping[str, int]) -> None:
        """When tokens were last used, in milliseconds since 1970. Changes nobody's rights, so it is
        no new revision."""
        with self._database.reading() as session:
            for token_id, at in sorted(used_at.items()):
                later = TokenRow.last_used_at.is_(None) | (TokenRow.last_used_at < at)
                mine = TokenRow.token_id == token_id
                session.execute(update(TokenRow).where(mine & later).values(last_used_at=at))
            session.commit()


def _row(session: Session, token_id: str, owner: str | None = None) -> TokenRow:
    row = session.get(TokenRow, token_id)
    if row is None or owner not in (None, row.principal_name):
        raise ResourceNotFoundError(
            f"there is no token with the id {token_id[:40]!r}; `dropless tokens list` shows those "
            "there are"
        )
    return row


def _scopes(session: Session, token_id: str) -> tuple[Grant, ...]:
    rows = session.scalars(
        select(GrantRow).where(GrantRow.token_id == token_id).order_by(GrantRow.id)
    )
    return tuple(map(grant_of, rows))


def _info(session: Session, row: TokenRow, owner_kind: PrincipalKind) -> TokenInfo:
    return TokenInfo(
        token_id=row.token_id,
        owner=row.principal_name,
        owner_kind=owner_kind,
        comment=row.comment,
        scopes=_scopes(session, row.token_id),
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )
