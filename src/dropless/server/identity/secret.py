"""The installation's own secret, and what is made of it: prefix-cache salts, session cookies."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from dropless.errors import AuthenticationError, SettingsError
from dropless.server.identity.principal import Principal

_FILE = "secret"
_BYTES = 32
SESSION_S = 12 * 3600


class Secret:
    """32 random bytes that never leave the server."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def fresh(cls) -> Secret:
        """For a server without users: what it protects ends with the process."""
        return cls(secrets.token_bytes(_BYTES))

    @classmethod
    def of_folder(cls, folder: Path) -> Secret:
        """The folder's, made on first use and readable by its owner only.

        Raises SettingsError: it cannot be read or written, or is no secret.
        """
        path = folder / _FILE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _write(path)
            key = path.read_bytes()
        except OSError as error:
            raise SettingsError(
                f"the server's secret {path} cannot be read or written: {error.strerror}; give the "
                "server a data folder of its own"
            ) from None
        if len(key) != _BYTES:
            raise SettingsError(
                f"the server's secret {path} has {len(key)} bytes, not {_BYTES}; delete it, and "
                "the server makes a new one (who is logged in with a browser logs in again)"
            )
        return cls(key)

    def __repr__(self) -> str:
        return "<Secret>"

    def cache_owner(self, principal: Principal) -> str:
        """The salt of this principal's prefix cache: one for all their tokens, no one else's."""
        return self._mac("cache", principal.kind, principal.name)

    def seal_session(self, token_id: str, now_s: float) -> str:
        """A cookie's value that stands for this token until SESSION_S from now, and is not it."""
        expires = str(int(now_s) + SESSION_S)
        return f"{token_id}.{expires}.{self._mac('session', token_id, expires)}"

    def open_session(self, value: str, now_s: float) -> str:
        """The token id. Raises AuthenticationError: not sealed by us, or too old."""
        token_id, _, rest = value.partition(".")
        expires, _, mac = rest.partition(".")
        right = self._mac("session", token_id, expires)
        if not hmac.compare_digest(mac.encode(), right.encode()) or int(expires) <= now_s:
            raise AuthenticationError("the session has ended; log in again")
        return token_id

    @property
    def cookie_name(self) -> str:
        """Of this installation: browsers do not tell ports apart, so that servers side by side on
        one machine would else overwrite each other's."""
        return f"dropless_session_{self._mac('cookie')[:8]}"

    def _mac(self, *parts: str) -> str:
        return hmac.digest(self._key, "\0".join(parts).encode(), "sha256").hex()


def _write(path: Path) -> None:
    """Whole or not at all: of servers that start together, all read the same one."""
    own = path.with_name(f"{_FILE}.{os.getpid()}")
    with open(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secrets.token_bytes(_BYTES))
        os.fsync(file.fileno())
    try:
        os.link(own, path)
    except FileExistsError:
        pass
    finally:
        own.unlink()
