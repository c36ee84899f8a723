"""Who is let in, with which token, and what a server without tokens may do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import cookie_parser

from dropless.errors import AuthenticationError, InvalidRequestError, SettingsError
from dropless.server.identity.browser import is_loopback
from dropless.server.identity.principal import ANYONE, LOCAL, Principal
from dropless.server.identity.secret import Secret
from dropless.server.identity.settings import IdentitySettings, StoreLocation

if TYPE_CHECKING:
    from dropless.server.identity.authenticator import Authenticator
    from dropless.server.identity.database import Database


def check_exposure(settings: IdentitySettings, data: Path, address: str) -> None:
    """Raises SettingsError: everybody on the network would be let in, and `open` does not say that
    this is meant."""
    if is_loopback(address) or settings.open or StoreLocation.of(settings, data).exists():
        return
    raise SettingsError(
        f"on {address} everybody on the network could use this server, as there are no users and "
        "tokens yet. Make the first with `dropless tokens create YOUR-NAME --grant CAN_MANAGE`; or "
        "stay on 127.0.0.1; or, if you mean it, use --insecure-open (identity.open: true in a file)"
    )


class Gatekeeper:
    """A store closes the server, from the first request after it was made: whoever has made a token
    means that tokens are asked for. Without one, all are let in."""

    def __init__(self, settings: IdentitySettings, data: Path, address: str) -> None:
        """`data` is the server's data folder, `address` the one it listens on. Raises as
        `check_exposure`."""
        self._data = data
        self._location = StoreLocation.of(settings, data)
        self._everybody = LOCAL if is_loopback(address) else ANYONE
        check_exposure(settings, data, address)
        self._authenticator: Authenticator | None = None
        self._last_used: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self.secret = Secret.fresh()

    async def start(self) -> None:
        """Open the store, if there is one, before the first request needs it. Raises as `Database`
        does."""
        if self._location.exists():
            await self.authenticator()

    @property
    def closed(self) -> bool:
        """Whether a token is asked for."""
        return self._authenticator is not None or self._location.exists()

    @property
    def database(self) -> Database | None:
        """Of users and tokens, once it was opened."""
        return None if self._authenticator is None else self._authenticator.database

    @property
    def local(self) -> bool:
        """Whether the server is on the loopback address."""
        return self._everybody is LOCAL

    async def principal(self, headers: Mapping[bytes, bytes]) -> Principal:
        """Raises AuthenticationError, TokenStoreError, SettingsError."""
        if not self.closed:
            return self._everybody
        authenticator = await self.authenticator()
        authorization = headers.get(b"authorization")
        if authorization is not None:
            scheme, _, token = authorization.decode("latin-1").partition(" ")
            if scheme.lower() != "bearer":
                raise AuthenticationError(f"{_HOW}; {scheme[:20]!r} is not known here")
            return await authenticator.token(token.strip())
        cookies = cookie_parser(headers.get(b"cookie", b"").decode("latin-1"))
        session = cookies.get(self.secret.cookie_name)
        if session is None:
            raise AuthenticationError(_HOW)
        return await authenticator.token_id(self.secret.open_session(session, time.time()))

    async def authenticator(self) -> Authenticator:
        """Of the store, opened when it is first asked for.

        Raises:
            InvalidRequestError: there is no store.
            SettingsError, TokenStoreError: it does not open.
        """
        if self._authenticator is not None:
            return self._authenticator
        async with self._opening:
            return self._authenticator or await self._open()

    async def close(self) -> None:
        """Raises TokenStoreError: when tokens were last used could not be written."""
        if self._authenticator is not None:
            assert self._last_used is not None
            self._last_used.cancel()
            await asyncio.gather(self._last_used, return_exceptions=True)
            await self._authenticator.close()

    async def _open(self) -> Authenticator:
        if not self._location.exists():
            raise InvalidRequestError(
                "this server has no users and tokens; make the first with `dropless tokens create "
                "YOUR-NAME --grant CAN_MANAGE` on its machine"
            )
        authenticator, self.secret = await asyncio.to_thread(self._load)
        self._last_used = asyncio.create_task(authenticator.keep_last_used())
        self._authenticator = authenticator
        return authenticator

    def _load(self) -> tuple[Authenticator, Secret]:
        # Takes a while to import, and a server without a store needs none of it.
        from dropless.server.identity.authenticator import Authenticator
        from dropless.server.identity.store import IdentityStore

        secret = Secret.of_folder(self._data)
        return Authenticator(IdentityStore(self._location.url)), secret


_HOW = "this server asks for a token; send it as `Authorization: Bearer dlp_...`"
