"""Which tables a command is about: the options that all commands of `dropless tables` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dropless.errors import TableError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dropless.server.configuration.endpoint_settings import EndpointSettings
    from dropless.tables.table_name import TableName
    from dropless.tables.table_store import TableStore

Data = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The server's data folder; default: ~/.local/share/dropless."),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", dir_okay=False, help="The server's configuration: it says where tables are."
    ),
]
TableArgument = Annotated[
    str, typer.Argument(metavar="TABLE", help="As main.default.dbrx_payload, or just dbrx.")
]
MaybeTableArgument = Annotated[
    str | None,
    typer.Argument(metavar="[TABLE]", help="As main.default.dbrx_payload, or just dbrx."),
]


class TablePlace:
    """The tables that a command is about, and the spool before them."""

    def __init__(self, data: Path | None, config: Path | None) -> None:
        """Raises DroplessError: the configuration is wrong, or there are no tables."""
        from dropless.server.configuration.loading import load
        from dropless.server.configuration.settings import Configuration
        from dropless.server.endpoints.store import EndpointStore
        from dropless.tables.table_store import TableStore

        configuration = Configuration() if config is None else load(config)
        folder = configuration.data if data is None else data.expanduser()
        settings = configuration.tables
        self.spool = settings.spool_in(folder)
        self.store: TableStore = TableStore(settings.location_in(folder), settings.storage())
        if self.store.is_local:
            self.names = self.store.names()
        else:  # which cannot be listed
            added = EndpointStore(folder / "endpoints.json").endpoints.values()
            wanted = _names([*configuration.endpoints, *added])
            self.names = [name for name in wanted if self.store.exists(name)]
        if not self.names:
            raise TableError(
                f"there are no tables in {self.store.location} yet; a server writes them there "
                "for endpoints with an inference_table_config. Say --config FILE or --data DIR if "
                "yours is elsewhere"
            )

    def find(self, wanted: str) -> TableName:
        """Raises TableError: no one table is called so."""
        from dropless.tables.overview import find_table

        return find_table(self.names, wanted)

    def find_payload(self, wanted: str | None) -> TableName:
        """The one that is named, or the only payload table there is. Raises TableError: there are
        none or several."""
        from dropless.tables.schema import PAYLOAD, kind_of

        if wanted is not None:
            return self.find(wanted)
        found = [name for name in self.names if kind_of(name) is PAYLOAD]
        if len(found) != 1:
            there = ", ".join(str(name) for name in found) or "there is none with calls"
            raise TableError(f"say which table: {there}")
        return found[0]

    def chosen(self, wanted: str | None) -> list[TableName]:
        """The one that is named, or all."""
        return self.names if wanted is None else [self.find(wanted)]


def _names(endpoints: Iterable[EndpointSettings]) -> list[TableName]:
    """The tables of these endpoints, and those that every server has."""
    from dropless.tables.table_name import SERVED_ENTITIES, USAGE

    found = {SERVED_ENTITIES, USAGE}
    for endpoint in endpoints:
        if endpoint.inference_table_config is not None:
            found.add(endpoint.inference_table_config.table(endpoint.name))
    return sorted(found)
