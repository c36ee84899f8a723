"""`dropless`: the commands, and how their errors reach the terminal."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dropless import __version__
from dropless.cli import (
    bench,
    chat,
    config,
    generate,
    groups,
    models,
    plan,
    pull,
    serve,
    study,
    tables,
    tokens,
    users,
)
from dropless.errors import DroplessError


class _Commands(TyperGroup):
    """Prints an error of ours as one line and exits with 1; `--debug`, anywhere on the command
    line, shows where it came from."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DroplessError as error:
            if ctx.params["debug"]:
                raise
            typer.secho(f"dropless: {error}", fg="red", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for command in (
    serve.serve,
    chat.chat,
    generate.generate,
    models.models,
    pull.pull,
    plan.plan,
    bench.bench,
    study.study,
):
    app.command()(command)
app.add_typer(config.config, name="config")
app.add_typer(tokens.tokens, name="tokens")
app.add_typer(users.users, name="users")
app.add_typer(groups.groups, name="groups")
app.add_typer(tables.app, name="tables")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dropless {__version__}")
        raise typer.Exit


@app.callback()
def dropless(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error.")
    ] = False,
) -> None:
    """Serve DBRX and its relatives: fast, on your own machines.

    Examples:

        dropless serve                     serve the default model on port 8000
        dropless chat                      talk to it here, in the terminal
        dropless models                    see which models install by name
        dropless generate prompts.jsonl    answer a file of prompts, offline
        dropless plan dbrx --gpu H100 --count 8    see whether it fits, and how fast it will be
        dropless bench --url http://127.0.0.1:8000 --concurrency 16
        dropless tables tail --follow      see what is asked of a server, and its answers

    Each command's own --help shows more.
    """


if __name__ == "__main__":
    app()
