"""`dropless tables list`, `show`, `query` and `tail`."""

from __future__ import annotations

import datetime
import enum
import time
from pathlib import Path
from typing import Annotated

import typer

from dropless.cli.table_place import Config, Data, MaybeTableArgument, TableArgument, TablePlace

_RECENT = 1000  # calls among which --follow looks for new ones
_LOOK_S = 1.0


class Format(enum.StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


def list_tables(
    data: Data = None,
    config: Config = None,
) -> None:
    """Show the tables: rows, size, last row.

    Examples:

        dropless tables list
        dropless tables list --data /var/lib/dropless
        dropless tables list --config dropless.yaml
    """
    from rich.console import Console
    from rich.table import Table

    from dropless.cli.table_output import size_text
    from dropless.tables.overview import overview
    from dropless.tables.spool_folder import spooled_bytes

    place = TablePlace(data, config)
    shown = Table(box=None, pad_edge=False)
    for title in ("table", "rows", "size", "files", "days", "last row (UTC)"):
        right = title in ("rows", "size", "files", "days")
        shown.add_column(title, justify="right" if right else "left", no_wrap=True)
    for name in place.names:
        found = overview(place.store, name)
        whole = found.whole
        shown.add_row(
            str(name),
            f"{whole.rows:,}",
            size_text(whole.bytes),
            f"{whole.files:,}",
            str(len(found.days)) if None not in found.days else "",
            "" if found.newest is None else f"{found.newest:%Y-%m-%d %H:%M:%S}",
        )
    console = Console(highlight=False)
    console.print(shown)
    waiting = spooled_bytes(place.spool)
    if waiting:
        console.print(
            f"{size_text(waiting)} in the spool, of which some is on its way into tables."
        )


def show(
    name: TableArgument,
    data: Data = None,
    config: Config = None,
) -> None:
    """Show a table's columns, days, properties and last versions.

    Example:

        dropless tables show dbrx
    """
    from rich.console import Console
    from rich.table import Table

    from dropless.cli.table_output import size_text, type_text
    from dropless.tables.overview import overview

    place = TablePlace(data, config)
    found = overview(place.store, place.find(name))
    delta = place.store.table(found.name)
    console = Console(highlight=False)
    console.print(f"[bold]{found.name}[/], version {found.version}, {delta.table_uri}\n")
    columns = Table(box=None, pad_edge=False)
    columns.add_column("column")
    columns.add_column("type")
    for field in delta.schema().fields:
        columns.add_row(field.name, type_text(field.type))
    console.print(columns)
    days = Table(box=None, pad_edge=False)
    for title in ("day", "rows", "size", "files"):
        days.add_column(title, justify="left" if title == "day" else "right")
    for day, part in sorted(found.days.items(), key=lambda item: str(item[0]), reverse=True)[:14]:
        days.add_row(
            "all" if day is None else day.isoformat(),
            f"{part.rows:,}",
            size_text(part.bytes),
            f"{part.files:,}",
        )
    console.print()
    console.print(days)
    console.print()
    for key, value in sorted(delta.metadata().configuration.items()):
        console.print(f"{key} = {value}")
    console.print()
    for entry in delta.history(5):
        time_of = datetime.datetime.fromtimestamp(entry["timestamp"] / 1000, datetime.UTC)
        console.print(
            f"version {entry['version']}  {time_of:%Y-%m-%d %H:%M:%S}  {entry['operation']}"
        )


def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT, in DuckDB's dialect.")],
    format: Annotated[Format, typer.Option(help="json: one object a line.")] = Format.TABLE,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write there; parquet needs it."),
    ] = None,
    data: Data = None,
    config: Config = None,
) -> None:
    """Ask the tables in SQL; only reading.

    A table goes by its full name, or by its last part. Bodies are JSON:
    request->>'$.messages\\[0].content'

    Examples:

        dropless tables query "SELECT status_code, count(*) FROM dbrx_payload GROUP BY ALL"
        dropless tables query "DESCRIBE dbrx_payload"
        dropless tables query "FROM dbrx_payload WHERE status_code >= 500" --format json
        dropless tables query "SELECT requester, sum(output_token_count) AS tokens \\
          FROM endpoint_usage GROUP BY ALL ORDER BY tokens DESC" --format csv --out tokens.csv
    """
    from dropless.cli.table_output import write_result
    from dropless.tables.sql import TableQueries

    place = TablePlace(data, config)
    names = [name for name in place.names if name.table in sql] or place.names
    if format is Format.PARQUET:
        if out is None:
            raise typer.BadParameter("--format parquet needs --out FILE")
        target = out.absolute()
        rows = TableQueries(place.store, names, spool=place.spool, out=target).write_parquet(
            sql, target
        )
        typer.echo(f"{rows} rows in {out}", err=True)
        return
    write_result(TableQueries(place.store, names, spool=place.spool).select(sql), format.value, out)


def tail(
    name: MaybeTableArgument = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, metavar="N")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new calls, until Ctrl-C.")
    ] = False,
    text: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only those that have it, in any case.")
    ] = None,
    status: Annotated[int | None, typer.Option(metavar="CODE")] = None,
    user: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    data: Data = None,
    config: Config = None,
) -> None:
    """Show the last calls, also those on their way into the table.

    Examples:

        dropless tables tail
        dropless tables tail dbrx --follow --status 500
        dropless tables tail dbrx -n 100 --text "blue whale" --user ada@example.com
    """
    from dropless.cli.table_output import call_line
    from dropless.tables.search import search
    from dropless.tables.search_query import Search

    place = TablePlace(data, config)
    payload = place.find_payload(name)
    codes = None if status is None else (status, status)
    wanted = Search(text=text, status_codes=codes, requester=user)
    found = search(place.store, place.spool, payload, wanted, _RECENT if follow else lines)
    for row in reversed(found[:lines]):
        typer.echo(call_line(row))
    while follow:
        shown = {row.databricks_request_id for row in found}
        time.sleep(_LOOK_S)
        found = search(place.store, place.spool, payload, wanted, _RECENT)
        for row in reversed(found):
            if row.databricks_request_id not in shown:
                typer.echo(call_line(row))
