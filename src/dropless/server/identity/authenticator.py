"""From a token to who asks, in microseconds, and never a moment longer than the token is valid."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dropless.errors import AuthenticationError, TokenStoreError
from dropless.server.identity.accounts import now_ms
from dropless.server.identity.database import Database
from dropless.server.identity.principal import Principal
from dropless.server.identity.revision import RevisionWatch
from dropless.server.identity.store import IdentityStore
from dropless.server.identity.token import Token
from dropless.server.identity.tokens import KnownToken

logger = logging.getLogger("dropless.server")

T = TypeVar("T")

_THREADS = 4
_NOTE_USED_S = 60.0


class Authenticator:
    """Remembers the tokens it has seen until the store's revision says that anything changed, and
    asks for the revision at every check: a revoked token is refused by every server at once."""

    def __init__(self, store: IdentityStore) -> None:
        self._store = store
        self._watch = RevisionWatch(store.database)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="token-store")
        self._revision = -1
        self._known: dict[str, KnownToken] = {}  # by token id; all of self._revision
        self._used_at: dict[str, int] = {}  # by token id; not yet in the store

    @property
    def database(self) -> Database:
        return self._store.database

    async def token(self, text: str) -> Principal:
        """Raises AuthenticationError, TokenStoreError."""
        token = Token.parse(text)
        known = await self._find(token.token_id)
        if known is None or not known.matches(token):
            raise AuthenticationError("the token is not known here, or was revoked; get a new one")
        return self._used(known)

    async def token_id(self, token_id: str) -> Principal:
        """The owner of this token, for who has proved already to have it.

        Raises AuthenticationError, TokenStoreError.
        """
        known = await self._find(token_id)
        if known is None:
            raise AuthenticationError("the token of this session was revoked; log in again")
        return self._used(known)

    async def ask(self, work: Callable[[IdentityStore], T]) -> T:
        """Run a query or a change of the store on a thread. Raises what `work` raises, and
        TokenStoreError if it takes too long; it may still be done then."""
        done = asyncio.get_running_loop().run_in_executor(self._threads, work, self._store)
        return await self._store.database.in_time(done)

    async def keep_last_used(self) -> None:
        """Write down, each minute, which tokens were used; for ever, until cancelled."""
        while True:
            await asyncio.sleep(_NOTE_USED_S)
            try:
                await self.note_used()
            except TokenStoreError as error:
                logger.warning("when tokens were last used is written later: %s", error)

    async def note_used(self) -> None:
        """Raises TokenStoreError, and then nothing is forgotten."""
        used_at = dict(self._used_at)
        await self.ask(lambda store: store.tokens.note_used(used_at))
        for token_id, at in used_at.items():
            if self._used_at.get(token_id) == at:
                del self._used_at[token_id]

    async def close(self) -> None:
        """Raises TokenStoreError, after all is closed."""
        try:
            await self.note_used()
        finally:
            self._threads.shutdown()
            self._watch.close()
            self._store.close()

    async def _find(self, token_id: str) -> KnownToken | None:
        revision = await self._watch.current()
        if revision != self._revision:
            self._revision = revision
            self._known.clear()
        known = self._known.get(token_id)
        if known is None:
            known = await self.ask(lambda store: store.tokens.find(token_id))
            # What was read may be older than a revision that another check has seen meanwhile.
            if known is not None and revision == self._revision:
                self._known[token_id] = known
        return known

    def _used(self, known: KnownToken) -> Principal:
        now = now_ms()
        if known.expires_at is not None and known.expires_at <= now:
            raise AuthenticationError("the token has expired; get a new one")
        token_id = known.principal.token_id
        assert token_id is not None
        self._used_at[token_id] = now
        return known.principal
