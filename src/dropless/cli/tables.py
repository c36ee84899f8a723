"""`dropless tables`: what was asked of a server and what it answered."""

from __future__ import annotations

import typer

from dropless.cli import tables_read, tables_tend

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def tables() -> None:
    """Read and tend inference tables: every call of an endpoint is a row.

    Examples:

        dropless tables list
        dropless tables query "SELECT status_code, count(*) FROM dbrx_payload GROUP BY ALL"
        dropless tables tail dbrx --follow
        dropless tables export dbrx --chat conversations.jsonl
    """
    from dropless.tables.writer_process import check_installed

    check_installed()


app.command("list")(tables_read.list_tables)
for command in (
    tables_read.show,
    tables_read.query,
    tables_read.tail,
    tables_tend.export,
    tables_tend.compact,
    tables_tend.vacuum,
):
    app.command()(command)
