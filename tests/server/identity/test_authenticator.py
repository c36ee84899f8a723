"""Checks of tokens: who is let in, for how long, how fast, and what waits for a slow database."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dropless.errors import AuthenticationError, TokenStoreError
from dropless.server.identity import authenticator as module
from dropless.server.identity.authenticator import Authenticator
from dropless.server.identity.principal import Grant, Holder, Principal
from dropless.server.identity.store import IdentityStore
from dropless.server.identity.token import Token


@asynccontextmanager
async def authenticator(url: str) -> AsyncIterator[Authenticator]:
    opened = Authenticator(IdentityStore(url))
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
def token(store: IdentityStore) -> Token:
    store.accounts.create("alice", grants=[Grant("CAN_QUERY")])
    return store.tokens.create("alice", created_by="root")[0]


def test_who_is_let_in(database_url: str, token: Token) -> None:
    async def check() -> None:
        async with authenticator(database_url) as auth:
            for _ in range(2):
                principal = await auth.token(token.value)
                assert (principal.name, principal.token_id) == ("alice", token.token_id)
                assert await auth.token_id(token.token_id) is principal
            for wrong in (Token.new().value, "none", "", token.value[:-1], token.value + "x"):
                with pytest.raises(AuthenticationError) as error:
                    await auth.token(wrong)
                assert wrong[14:] == "" or wrong[14:] not in str(error.value)

    asyncio.run(check())


def test_another_secret_under_a_known_name(database_url: str, token: Token) -> None:
    other = Token.new().value
    body = token.token_id + other[14:46]
    from dropless.server.identity.token import _checksum

    forged = body + _checksum(body)

    async def check() -> None:
        async with authenticator(database_url) as auth:
            await auth.token(token.value)
            with pytest.raises(AuthenticationError, match="not known"):
                await auth.token(forged)

    asyncio.run(check())


def test_what_another_process_changes_holds_at_once(database_url: str, token: Token) -> None:
    program = (
        "import sys; from dropless.server.identity.store import IdentityStore; "
        "from dropless.server.identity.principal import Grant, Holder; "
        "store = IdentityStore(sys.argv[1]); exec(sys.argv[2])"
    )

    def elsewhere(what: str) -> None:
        command = [sys.executable, "-c", program, database_url, what]
        subprocess.run(command, check=True, timeout=60)

    async def check() -> None:
        async with authenticator(database_url) as auth:
            assert not (await auth.token(token.value)).is_admin
            elsewhere("store.accounts.grant(Holder('principal', 'alice'), [Grant('CAN_MANAGE')])")
            assert (await auth.token(token.value)).is_admin
            elsewhere(f"store.tokens.revoke({token.token_id!r})")
            with pytest.raises(AuthenticationError, match="revoked"):
                await auth.token(token.value)
            with pytest.raises(AuthenticationError, match="revoked"):
                await auth.token_id(token.token_id)

    asyncio.run(check())


def test_a_revocation_that_crosses_a_check_is_not_forgotten(
    database_url: str, store: IdentityStore, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is read before it is revoked, and what was read comes after."""

    async def check() -> None:
        async with authenticator(database_url) as auth:
            read, go_on = asyncio.Event(), asyncio.Event()
            ask = auth.ask

            async def slow(work: Callable[[IdentityStore], Any]) -> Any:
                found = await ask(work)
                read.set()
                await go_on.wait()
                return found

            monkeypatch.setattr(auth, "ask", slow)
            first = asyncio.create_task(auth.token(token.value))
            await read.wait()
            monkeypatch.setattr(auth, "ask", ask)
            await asyncio.to_thread(store.tokens.revoke, token.token_id)
            with pytest.raises(AuthenticationError):
                await auth.token(token.value)
            go_on.set()
            await first  # it was valid when this check began
            with pytest.raises(AuthenticationError):
                await auth.token(token.value)

    asyncio.run(check())


def test_many_checks_beside_many_changes(
    database_url: str, store: IdentityStore, token: Token
) -> None:
    """A check that begins after a change has ended sees the change."""
    alice = Holder("principal", "alice")

    async def check() -> None:
        async with authenticator(database_url) as auth:
            state = "CAN_QUERY"
            changing = False

            async def look() -> None:
                while not done:
                    before, quiet = state, not changing
                    principal = await auth.token(token.value)
                    if quiet and not changing and before == state:
                        assert principal.grants == (Grant(before),)  # type: ignore[arg-type]
                    await asyncio.sleep(0)

            done = False
            looks = [asyncio.create_task(look()) for _ in range(5)]
            for number in range(15):
                new = ("CAN_VIEW", "CAN_QUERY", "CAN_MANAGE")[number % 3]
                changing = True
                await asyncio.to_thread(store.accounts.grant, alice, [Grant(new)])  # type: ignore[arg-type]
                state, changing = new, False
                principal = await auth.token(token.value)
                assert principal.grants == (Grant(new),)  # type: ignore[arg-type]
            done = True
            await asyncio.gather(*looks)

    asyncio.run(check())


def test_an_expired_token_is_refused_from_that_moment(
    database_url: str, store: IdentityStore, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    del token
    short, info = store.tokens.create("alice", created_by="root", lifetime_s=60)
    assert info.expires_at is not None

    async def check() -> None:
        async with authenticator(database_url) as auth:
            monkeypatch.setattr(module, "now_ms", lambda: info.expires_at - 1)
            await auth.token(short.value)
            monkeypatch.setattr(module, "now_ms", lambda: info.expires_at)
            with pytest.raises(AuthenticationError, match="expired"):
                await auth.token(short.value)

    asyncio.run(check())


def test_last_use_is_written_when_it_closes(
    database_url: str, store: IdentityStore, token: Token
) -> None:
    async def check() -> None:
        async with authenticator(database_url) as auth:
            await auth.token(token.value)

    before = time.time() * 1000 - 20  # a clock may be set back a little meanwhile
    asyncio.run(check())
    used = store.tokens.get(token.token_id).last_used_at
    assert used is not None
    assert before <= used <= time.time() * 1000 + 20


def test_a_check_takes_microseconds(database_url: str, token: Token) -> None:
    """The bound is generous: a shared machine pauses. One at a time, over a loop of its own."""

    async def check() -> float:
        async with authenticator(database_url) as auth:
            await auth.token(token.value)
            times = []
            for _ in range(300):
                began = time.perf_counter()
                await auth.token(token.value)
                times.append(time.perf_counter() - began)
            return sorted(times)[len(times) // 2]

    median = asyncio.run(check())
    assert median < (0.2e-3 if database_url.startswith("sqlite") else 5e-3)


def test_a_writer_that_holds_the_file_holds_up_no_check(
    store: IdentityStore, database_url: str, token: Token
) -> None:
    if not database_url.startswith("sqlite"):
        pytest.skip("of SQLite")

    async def check() -> None:
        async with authenticator(database_url) as auth:
            with store.database.engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                connection.exec_driver_sql("UPDATE store_state SET revision = revision + 1")
                began = time.perf_counter()
                await auth.token(token.value)
                assert time.perf_counter() - began < 1.0
                connection.rollback()

    asyncio.run(check())


def test_a_slow_server_holds_up_no_loop_and_is_asked_once_for_many(
    store: IdentityStore, database_url: str, token: Token
) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("of a server")

    async def check() -> None:
        async with authenticator(database_url) as auth:
            await auth.token(token.value)
            with store.database.engine.begin() as connection:
                connection.exec_driver_sql("LOCK TABLE store_state IN ACCESS EXCLUSIVE MODE")
                waiting = [asyncio.create_task(auth.token(token.value)) for _ in range(200)]
                longest, last = 0.0, time.perf_counter()
                for _ in range(20):
                    await asyncio.sleep(0.01)
                    longest = max(longest, time.perf_counter() - last)
                    last = time.perf_counter()
                assert longest < 0.5
                assert not any(task.done() for task in waiting)
                queries = connection.exec_driver_sql(
                    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT revision%%' "
                    "AND state = 'active'"
                ).scalar_one()
                assert queries == 1
            assert {principal.name for principal in await asyncio.gather(*waiting)} == {"alice"}

    asyncio.run(check())


def test_a_server_that_hangs_is_not_waited_for(
    store: IdentityStore, database_url: str, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("of a server")

    async def check() -> None:
        async with authenticator(database_url) as auth:
            await auth.token(token.value)
            with store.database.engine.begin() as connection, monkeypatch.context() as patch:
                patch.setattr("dropless.server.identity.database.PATIENCE_S", 0.3)
                connection.exec_driver_sql("LOCK TABLE store_state IN ACCESS EXCLUSIVE MODE")
                began = time.perf_counter()
                for _ in range(2):
                    with pytest.raises(TokenStoreError, match=r"nothing within 0\.3 s"):
                        await auth.token(token.value)
                assert time.perf_counter() - began < 3
            assert (await auth.token(token.value)).name == "alice"

    asyncio.run(check())


def test_nobody_is_let_in_without_the_database_and_all_are_when_it_is_back(
    store: IdentityStore, database_url: str, token: Token
) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("of a server")
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND query LIKE 'SELECT revision%%'"
    )

    async def check() -> Principal:
        async with authenticator(database_url) as auth:
            await auth.token(token.value)
            with store.database.engine.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE store_state RENAME TO hidden")
                connection.exec_driver_sql(end)
            with pytest.raises(TokenStoreError, match="does not answer"):
                await auth.token(token.value)
            with store.database.engine.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE hidden RENAME TO store_state")
            await auth.token(token.value)
            with store.database.engine.begin() as connection:
                connection.exec_driver_sql(end)
            return await auth.token(token.value)

    assert asyncio.run(check()).name == "alice"
