"""`dropless config`: the configuration file, checked and printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

config = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@config.callback()
def about() -> None:
    """Check or print the configuration file of `dropless serve --config`."""


@config.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file.")],
) -> None:
    """Say whether a configuration file is right; each mistake with its line.

    Examples:

        dropless config check dropless.yaml
    """
    from dropless.server.configuration.loading import load

    configuration = load(file)
    names = ", ".join(endpoint.name for endpoint in configuration.endpoints) or "none"
    typer.echo(f"{file} is right. Endpoints: {names}.")


@config.command("print")
def print_(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The YAML file; default: what `dropless serve` uses."),
    ] = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="With every key that there is.")
    ] = False,
) -> None:
    """Print a configuration as YAML, for a file of your own.

    Examples:

        dropless config print > dropless.yaml      begin with what `dropless serve` does
        dropless config print --defaults           every key and its default
        dropless config print dropless.yaml --defaults    what a file comes to
    """
    from dropless.cli.serve import DEFAULT_HOST, DEFAULT_PORT, from_options
    from dropless.server.configuration.loading import load
    from dropless.server.configuration.printing import to_yaml

    if file is None:
        configuration = from_options(None, DEFAULT_HOST, DEFAULT_PORT, {})
    else:
        configuration = load(file)
    typer.echo(to_yaml(configuration, defaults=defaults), nl=False)
