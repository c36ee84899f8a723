"""The tables of users, groups, grants and tokens, and of what servers took of rate limits."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dropless.server.identity.principal import NAME_CHARS

# Of what is below. A store of another version is refused, not guessed at.
VERSION = 1

COMMENT_CHARS = 500


class Base(DeclarativeBase):
    """All times are milliseconds since 1970, as the platform's API has them."""

    type_annotation_map = {int: BigInteger}  # noqa: RUF012  SQLAlchemy reads it


class StoreState(Base):
    """One row. `revision` grows with every change that decides who may do what."""

    __tablename__ = "store_state"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    version: Mapped[int]
    revision: Mapped[int]


class PrincipalRow(Base):
    __tablename__ = "principals"

    name: Mapped[str] = mapped_column(String(NAME_CHARS), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    created_at: Mapped[int]


class GroupRow(Base):
    __tablename__ = "user_groups"

    name: Mapped[str] = mapped_column(String(NAME_CHARS), primary_key=True)
    created_at: Mapped[int]


class MembershipRow(Base):
    __tablename__ = "memberships"

    group_name: Mapped[str] = mapped_column(
        ForeignKey("user_groups.name", ondelete="CASCADE"), primary_key=True
    )
    principal_name: Mapped[str] = mapped_column(
        ForeignKey("principals.name", ondelete="CASCADE"), primary_key=True, index=True
    )


class TokenRow(Base):
    __tablename__ = "tokens"

    token_id: Mapped[str] = mapped_column(String(20), primary_key=True)
    sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    principal_name: Mapped[str] = mapped_column(
        ForeignKey("principals.name", ondelete="CASCADE"), index=True
    )
    comment: Mapped[str] = mapped_column(String(COMMENT_CHARS))
    created_by: Mapped[str] = mapped_column(String(NAME_CHARS))
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    last_used_at: Mapped[int | None]


class GrantRow(Base):
    """What a principal or a group may do on an endpoint, or what a token is narrowed to."""

    __tablename__ = "grants"
    __table_args__ = (
        CheckConstraint(
            "CASE WHEN principal_name IS NULL THEN 0 ELSE 1 END"
            " + CASE WHEN group_name IS NULL THEN 0 ELSE 1 END"
            " + CASE WHEN token_id IS NULL THEN 0 ELSE 1 END = 1",
            name="grants_one_holder",
        ),
        UniqueConstraint("principal_name", "endpoint"),
        UniqueConstraint("group_name", "endpoint"),
        UniqueConstraint("token_id", "endpoint"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    principal_name: Mapped[str | None] = mapped_column(
        ForeignKey("principals.name", ondelete="CASCADE")
    )
    group_name: Mapped[str | None] = mapped_column(
        ForeignKey("user_groups.name", ondelete="CASCADE")
    )
    token_id: Mapped[str | None] = mapped_column(ForeignKey("tokens.token_id", ondelete="CASCADE"))
    endpoint: Mapped[str] = mapped_column(String(NAME_CHARS))
    permission: Mapped[str] = mapped_column(String(20))


class QuotaServerRow(Base):
    """A server that counts rate limits, and the last batch of slots that it has written."""

    __tablename__ = "quota_servers"

    server: Mapped[str] = mapped_column(String(32), primary_key=True)
    batch: Mapped[int]
    written_at: Mapped[int]


class QuotaSlotRow(Base):
    """What a server took of a rate limit's window within a short time. It counts until `ends_at`,
    and is deleted then."""

    __tablename__ = "quota_slots"
    __table_args__ = (Index("quota_slots_by_batch", "server", "batch"),)

    server: Mapped[str] = mapped_column(String(32), primary_key=True)
    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    window_key: Mapped[str] = mapped_column(Text)
    amount: Mapped[int]
    ends_at: Mapped[int] = mapped_column(index=True)
    batch: Mapped[int]
