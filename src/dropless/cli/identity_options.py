"""Where the users and tokens are: options of every command that works on them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dropless.server.identity.settings import StoreLocation
    from dropless.server.identity.store import IdentityStore

_OPTIONS: dict[str, Any] = {
    "config": Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The server's YAML file, which says where they are."),
    ],
    "database": Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="sqlite:////PATH or postgresql://...; default: ~/.local/share/dropless.",
        ),
    ],
}


class StorePlace:
    """Where the store is, or would be."""

    def __init__(self, config: Path | None, database: str | None) -> None:
        self._config = config
        self._database = database

    @contextmanager
    def open(self, *, create: bool = False) -> Iterator[IdentityStore]:
        """Without `create` only one that exists: a look at an empty place, or a command that fails,
        must not close a server that is open.

        Raises SettingsError, TokenStoreError.
        """
        from dropless.errors import SettingsError
        from dropless.server.identity.store import IdentityStore

        location = self._location()
        if not create and not location.exists():
            raise SettingsError(
                f"there are no users and tokens yet ({location.file}); make the first with "
                "`dropless tokens create YOUR-NAME --grant CAN_MANAGE`"
            )
        store = IdentityStore(location.url)
        try:
            yield store
        finally:
            store.close()

    def _location(self) -> StoreLocation:
        from dropless.errors import SettingsError
        from dropless.server.configuration.loading import load
        from dropless.server.configuration.settings import Configuration
        from dropless.server.identity.settings import IdentitySettings, StoreLocation

        if self._config is not None and self._database is not None:
            raise SettingsError("give --config or --database, not both")
        configuration = Configuration() if self._config is None else load(self._config)
        identity = configuration.identity
        if self._database is not None:
            identity = IdentitySettings(database=self._database)
        return StoreLocation.of(identity, configuration.data)


def store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where the store is; it receives them as its keyword
    argument `place`."""
    own = inspect.signature(command, eval_str=True)
    parameters = [p for p in own.parameters.values() if p.name != "place"]
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters += [
        inspect.Parameter(name, kind, default=None, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def with_place(**arguments: Any) -> None:
        place = StorePlace(**{name: arguments.pop(name) for name in _OPTIONS})
        command(**arguments, place=place)

    with_place.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_place.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_place
