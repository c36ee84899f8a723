"""Which tables a command is about: the options that all commands of `dropless tables` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dropless.errors import TableError

if TYPE_CHECKING:
    from dropless.tables.table_name import TableName
    from dropless.tables.table_store import TableStore

DEFAULT_DATA = Path("~/.local/share/dropless")

Data = Annotated[Path, typer.Option(metavar="DIR", help="The server's data folder (its `data:`).")]
Location = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Where the tables are, if not in DATA/tables: s3://..."),
]
StorageOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option", metavar="KEY=VALUE", help="For URLs: AWS_ENDPOINT_URL=... and so on."
    ),
]
Tables = Annotated[
    list[str] | None,
    typer.Option("--table", metavar="NAME", help="For URLs, which cannot be listed: a full name."),
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

    def __init__(
        self, data: Path, location: str | None, options: list[str] | None, tables: list[str] | None
    ) -> None:
        from dropless.tables.table_name import TableName
        from dropless.tables.table_store import TableStore
        from dropless.tables.writer_process import check_installed

        check_installed()
        data = data.expanduser()
        self.spool = data / "spool"
        self.store: TableStore = TableStore(
            str(data / "tables") if location is None else location, _storage(options)
        )
        self.names: list[TableName] = (
            [TableName.parse(text) for text in tables] if tables else self.store.names()
        )
        if not self.names:
            raise TableError(
                f"there are no tables in {self.store.location} yet; a server writes them there "
                "for endpoints with an inference_table_config. Is --data right?"
            )

    def find(self, wanted: str) -> TableName:
        from dropless.tables.overview import find_table

        return find_table(self.names, wanted)

    def find_payload(self, wanted: str | None) -> TableName:
        """The one that is named, or the only payload table there is."""
        from dropless.tables.schema import PAYLOAD, kind_of

        if wanted is not None:
            return self.find(wanted)
        found = [name for name in self.names if kind_of(name) is PAYLOAD]
        if len(found) != 1:
            raise TableError(f"say which table: {', '.join(str(name) for name in found)}")
        return found[0]

    def chosen(self, wanted: str | None) -> list[TableName]:
        """The one that is named, or all."""
        return self.names if wanted is None else [self.find(wanted)]


def _storage(options: list[str] | None) -> dict[str, str]:
    pairs = [option.partition("=") for option in options or ()]
    for name, equals, _ in pairs:
        if not equals:
            raise typer.BadParameter(f"--storage-option {name} must be KEY=VALUE")
    return {name: value for name, _, value in pairs}
