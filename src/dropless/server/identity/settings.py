"""The `identity` section of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dropless.server.configuration.section import Section

_SQLITE = "sqlite:///"
_FILE = "identity.db"


class IdentitySettings(Section):
    """`database` is the URL of the store of users and tokens, a SQLite file in the data folder by
    default. While there is no store, a server on the loopback address lets everybody in, and one
    on another address does not start unless `open` is true."""

    database: str | None = None
    open: bool = False


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """Where the store is, or would be. `file` is None for a database server."""

    url: str
    file: Path | None

    @classmethod
    def of(cls, settings: IdentitySettings, data: Path) -> StoreLocation:
        url = settings.database or f"{_SQLITE}{data / _FILE}"
        path, _, _ = url.removeprefix(_SQLITE).partition("?")
        return cls(url, Path(path) if url.startswith(_SQLITE) else None)

    def exists(self) -> bool:
        """A database server's store is taken to exist: someone wrote its URL down and means it."""
        return self.file is None or self.file.exists()
