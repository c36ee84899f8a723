"""Users, groups, grants and tokens in real databases."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dropless.errors import (
    ConflictError,
    InvalidRequestError,
    ResourceNotFoundError,
    SettingsError,
    TokenStoreError,
)
from dropless.server.identity.principal import Grant, Holder
from dropless.server.identity.store import IdentityStore
from dropless.server.identity.token import Token

ALICE = Holder("principal", "alice")
TEAM = Holder("group", "team")
MANAGE, QUERY, VIEW = Grant("CAN_MANAGE"), Grant("CAN_QUERY"), Grant("CAN_VIEW")


def revision(store: IdentityStore) -> int:
    with store.database.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT revision FROM store_state").scalar_one())


def test_who_a_token_belongs_to(store: IdentityStore) -> None:
    store.accounts.create("alice", grants=[VIEW])
    store.accounts.create_group("team", grants=[Grant("CAN_QUERY", "dbrx")])
    store.accounts.add_member("team", "alice")
    token, info = store.tokens.create("alice", created_by="root", comment="laptop", lifetime_s=60)
    assert (info.token_id, info.owner, info.owner_kind) == (token.token_id, "alice", "user")
    assert info.expires_at == info.created_at + 60_000
    known = store.tokens.find(token.token_id)
    assert known is not None
    assert known.matches(token)
    assert not known.matches(Token.new())
    assert known.expires_at == info.expires_at
    assert known.principal.name == "alice"
    assert known.principal.groups == {"team"}
    assert set(known.principal.grants) == {VIEW, Grant("CAN_QUERY", "dbrx")}
    assert known.principal.token_id == token.token_id
    assert store.tokens.get(token.token_id) == info


def test_only_the_hash_is_stored(store: IdentityStore) -> None:
    store.accounts.create("alice")
    token, _ = store.tokens.create("alice", created_by="root")
    with store.database.engine.connect() as connection:
        row = connection.exec_driver_sql("SELECT * FROM tokens").one()
    assert bytes(row.sha256) == token.sha256
    assert token.value[14:] not in repr(tuple(row))


def test_scopes_narrow_a_token(store: IdentityStore) -> None:
    store.accounts.create("alice", grants=[MANAGE])
    scopes = [Grant("CAN_QUERY", "dbrx"), Grant("CAN_VIEW")]
    token, info = store.tokens.create("alice", created_by="alice", scopes=scopes)
    assert info.scopes == tuple(scopes)
    known = store.tokens.find(token.token_id)
    assert known is not None
    assert not known.principal.is_admin
    assert known.principal.can("CAN_QUERY", "dbrx")
    assert not known.principal.can("CAN_QUERY", "other")
    assert known.principal.can("CAN_VIEW", "other")


def test_a_revoked_token_is_gone(store: IdentityStore) -> None:
    store.accounts.create("alice")
    store.accounts.create("bob")
    token, _ = store.tokens.create("alice", created_by="root")
    other, _ = store.tokens.create("alice", created_by="root")
    with pytest.raises(ResourceNotFoundError, match=token.token_id):
        store.tokens.revoke(token.token_id, owner="bob")
    store.tokens.revoke(token.token_id, owner="alice")
    assert store.tokens.find(token.token_id) is None
    assert store.tokens.find(other.token_id) is not None
    with pytest.raises(ResourceNotFoundError):
        store.tokens.revoke(token.token_id)


def test_tokens_and_grants_end_with_their_owner(store: IdentityStore) -> None:
    store.accounts.create("alice", grants=[MANAGE])
    store.accounts.create_group("team")
    store.accounts.add_member("team", "alice")
    token, _ = store.tokens.create("alice", created_by="root", scopes=[QUERY])
    store.accounts.delete("alice")
    assert store.tokens.find(token.token_id) is None
    assert store.accounts.groups()[0].members == ()
    store.accounts.create("alice")
    assert store.accounts.get("alice").grants == ()
    assert store.tokens.list("alice") == ()


def test_a_group_gives_and_takes(store: IdentityStore) -> None:
    store.accounts.create("alice")
    store.accounts.create_group("team", grants=[QUERY])
    token, _ = store.tokens.create("alice", created_by="root")

    def may() -> bool:
        known = store.tokens.find(token.token_id)
        return known is not None and known.principal.can("CAN_QUERY", "dbrx")

    assert not may()
    store.accounts.add_member("team", "alice")
    store.accounts.add_member("team", "alice")
    assert may()
    store.accounts.remove_member("team", "alice")
    assert not may()
    with pytest.raises(ResourceNotFoundError, match="not in the group"):
        store.accounts.remove_member("team", "alice")
    store.accounts.add_member("team", "alice")
    store.accounts.delete_group("team")
    assert not may()


def test_there_is_one_grant_on_an_endpoint(store: IdentityStore) -> None:
    store.accounts.create("alice", grants=[VIEW])
    store.accounts.grant(ALICE, [Grant("CAN_QUERY", "dbrx"), QUERY, MANAGE])
    assert set(store.accounts.get("alice").grants) == {MANAGE, Grant("CAN_QUERY", "dbrx")}
    store.accounts.withdraw(ALICE, "dbrx")
    assert store.accounts.get("alice").grants == (MANAGE,)
    with pytest.raises(ResourceNotFoundError, match="'dbrx'"):
        store.accounts.withdraw(ALICE, "dbrx")


def test_grants_seen_from_the_endpoint(store: IdentityStore) -> None:
    store.accounts.create("alice", grants=[Grant("CAN_VIEW", "dbrx")])
    store.accounts.create("robot", "service_principal", grants=[MANAGE])
    store.accounts.create_group("team", grants=[Grant("CAN_QUERY", "other")])
    store.tokens.create("alice", created_by="root", scopes=[Grant("CAN_QUERY", "dbrx")])
    robot = Holder("principal", "robot")
    assert store.accounts.grants_on("dbrx") == [
        (ALICE, "user", Grant("CAN_VIEW", "dbrx")),
        (robot, "service_principal", MANAGE),
    ]
    store.accounts.replace_grants_on("dbrx", {TEAM: "CAN_QUERY"})
    assert {(h.name, g) for h, _, g in store.accounts.grants_on("dbrx")} == {
        ("robot", MANAGE),
        ("team", Grant("CAN_QUERY", "dbrx")),
    }
    store.accounts.add_grants_on("dbrx", {ALICE: "CAN_MANAGE", TEAM: "CAN_VIEW"})
    assert {(h.name, g) for h, _, g in store.accounts.grants_on("dbrx")} == {
        ("robot", MANAGE),
        ("team", Grant("CAN_VIEW", "dbrx")),
        ("alice", Grant("CAN_MANAGE", "dbrx")),
    }
    assert store.accounts.grants_on("other")[-1][0] == robot
    assert store.tokens.list("alice")[0].scopes == (Grant("CAN_QUERY", "dbrx"),)


def test_a_change_that_fails_changes_nothing(store: IdentityStore) -> None:
    store.accounts.create("alice")
    before = revision(store)
    with pytest.raises(ResourceNotFoundError, match="'nobody'"):
        store.accounts.add_grants_on(
            "dbrx", {ALICE: "CAN_QUERY", Holder("principal", "nobody"): "CAN_QUERY"}
        )
    with pytest.raises(ConflictError):
        store.accounts.create("alice", grants=[MANAGE])
    with pytest.raises(ResourceNotFoundError):
        store.tokens.create("nobody", created_by="root")
    assert store.accounts.get("alice").grants == ()
    assert revision(store) == before


def test_every_change_is_a_new_revision(store: IdentityStore) -> None:
    token: list[Token] = []
    changes: list[Callable[[], object]] = [
        lambda: store.accounts.create("alice"),
        lambda: store.accounts.create_group("team"),
        lambda: store.accounts.add_member("team", "alice"),
        lambda: store.accounts.grant(TEAM, [QUERY]),
        lambda: token.append(store.tokens.create("alice", created_by="root")[0]),
        lambda: store.accounts.withdraw(TEAM),
        lambda: store.accounts.replace_grants_on("dbrx", {TEAM: "CAN_VIEW"}),
        lambda: store.accounts.add_grants_on("dbrx", {ALICE: "CAN_VIEW"}),
        lambda: store.accounts.remove_member("team", "alice"),
        lambda: store.tokens.revoke(token[0].token_id),
        lambda: store.accounts.delete_group("team"),
        lambda: store.accounts.delete("alice"),
    ]
    for number, change in enumerate(changes, 1):
        change()
        assert revision(store) == number


def test_last_use_only_moves_forward(store: IdentityStore) -> None:
    store.accounts.create("alice")
    token, info = store.tokens.create("alice", created_by="root")
    assert info.last_used_at is None
    before = revision(store)
    store.tokens.note_used({token.token_id: 2000, "dlp_gone": 1})
    store.tokens.note_used({token.token_id: 1000})
    assert store.tokens.get(token.token_id).last_used_at == 2000
    assert revision(store) == before


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\x00", "x" * 201, "local", "anyone"])
def test_names_that_cannot_be(store: IdentityStore, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        store.accounts.create(name)
    with pytest.raises(InvalidRequestError):
        store.accounts.create_group(name)


def test_texts_that_a_database_cannot_hold_are_the_askers_fault(store: IdentityStore) -> None:
    store.accounts.create("alice")
    for name in ("a\x00b", "x" * 100_000):
        with pytest.raises((ResourceNotFoundError, InvalidRequestError)):
            store.accounts.get(name)
    if store.database.engine.dialect.name == "postgresql":
        for endpoint in ("a\x00b", "x" * 300):
            with pytest.raises(InvalidRequestError, match="cannot be stored"):
                store.accounts.grant(ALICE, [Grant("CAN_VIEW", endpoint)])


@pytest.mark.parametrize(
    "wrong",
    [{"lifetime_s": 0}, {"lifetime_s": 10**12}, {"comment": "a\nb"}, {"comment": "x" * 501}],
)
def test_tokens_that_cannot_be(store: IdentityStore, wrong: dict[str, object]) -> None:
    store.accounts.create("alice")
    with pytest.raises(InvalidRequestError):
        store.tokens.create("alice", created_by="root", **wrong)  # type: ignore[arg-type]
    assert store.tokens.list() == ()


def test_a_store_keeps_what_it_holds(database_url: str) -> None:
    first = IdentityStore(database_url)
    first.accounts.create("Zoë", grants=[QUERY])
    first.close()
    second = IdentityStore(database_url)
    assert [account.name for account in second.accounts.principals()] == ["Zoë"]
    second.close()


def test_stores_made_at_the_same_moment(database_url: str) -> None:
    failures: list[BaseException] = []

    def make(number: int) -> None:
        try:
            store = IdentityStore(database_url)
            store.accounts.create(f"user-{number}")
            store.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    store = IdentityStore(database_url)
    assert len(store.accounts.principals()) == 5
    store.close()


def test_tables_of_a_newer_version_are_refused(store: IdentityStore, database_url: str) -> None:
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE store_state SET version = 99")
    with pytest.raises(SettingsError, match="version 99"):
        IdentityStore(database_url)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "identity.db"
    url = f"sqlite:///{path}"
    store = IdentityStore(url)
    store.accounts.create("alice")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    store.close()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "identity.db"
    path.write_text("not a database, but a text that is long enough to look at" * 100)
    with pytest.raises(TokenStoreError, match=r"identity\.db.*not a database"):
        IdentityStore(f"sqlite:///{path}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SettingsError, match="cannot be opened"):
        IdentityStore(f"sqlite:///{tmp_path}/identity.db")


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be opened"):
        IdentityStore(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("identity.db", "no database URL"),
        ("mysql://root:hunter2@host/db", "'mysql'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("postgresql://u:hunter2@host:port/db", "no database URL"),
    ],
)
def test_urls_that_are_none(url: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as error:
        IdentityStore(url)
    assert "hunter2" not in str(error.value)


def test_a_server_that_is_not_there() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(TokenStoreError, match="does not answer") as error:
        IdentityStore("postgresql://dropless:hunter2@127.0.0.1:1/db")
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is not None
    assert "hunter2" not in str(error.value.__cause__)


def test_a_locked_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "identity.db"
    store = IdentityStore(f"sqlite:///{path}")
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, other.rollback).start()
    store.accounts.create("alice")
    store.close()
    other.close()
