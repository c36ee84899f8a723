"""`dropless groups`: what several users may do, and share."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dropless.cli.identity_options import StorePlace, store_options

groups = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

_Group = Annotated[str, typer.Argument(metavar="GROUP")]
_Names = Annotated[list[str], typer.Argument(metavar="NAME...")]


@groups.callback()
def about() -> None:
    """Create, list and delete groups, and say who is in them and what they may do."""


@groups.command()
@store_options
def create(
    group: _Group,
    grant: Annotated[
        list[str] | None, typer.Option(metavar="GRANT", help="What its members may do.")
    ] = None,
    *,
    place: StorePlace,
) -> None:
    """Create a group.

    Examples:

        dropless groups create analysts --grant CAN_QUERY:dbrx
    """
    from dropless.server.identity.principal import Grant, check_name

    grants = [Grant.parse(text) for text in grant or ()]
    check_name(group)
    with place.open(create=True) as store:
        store.accounts.create_group(group, grants)
    typer.echo(f"{group} is here; add members with `dropless groups add {group} NAME`.")


@groups.command("list")
@store_options
def list_(
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything known of them, for programs.")
    ] = False,
    *,
    place: StorePlace,
) -> None:
    """List groups, with their members and grants.

    Examples:

        dropless groups list
        dropless groups list --json
    """
    from rich.console import Console
    from rich.table import Table

    with place.open() as store:
        found = store.accounts.groups()
    if as_json:
        facts = [
            {
                "name": group.name,
                "members": group.members,
                "grants": [str(grant) for grant in group.grants],
                "created_at": group.created_at,
            }
            for group in found
        ]
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("group", "members", "grants"):
        table.add_column(column)
    for group in found:
        table.add_row(group.name, ", ".join(group.members), ", ".join(map(str, group.grants)))
    Console(highlight=False, markup=False).print(table)


@groups.command()
@store_options
def add(group: _Group, names: _Names, *, place: StorePlace) -> None:
    """Add members.

    Examples:

        dropless groups add analysts alice@example.com bob@example.com
    """
    with place.open() as store:
        for name in names:
            store.accounts.add_member(group, name)
    typer.echo(f"{', '.join(names)} in {group}.")


@groups.command()
@store_options
def remove(group: _Group, names: _Names, *, place: StorePlace) -> None:
    """Remove members. They stay users.

    Examples:

        dropless groups remove analysts bob@example.com
    """
    with place.open() as store:
        for name in names:
            store.accounts.remove_member(group, name)
    typer.echo(f"{', '.join(names)} not in {group} any more.")


@groups.command()
@store_options
def grant(
    group: _Group,
    grants: Annotated[list[str], typer.Argument(metavar="GRANT...")],
    *,
    place: StorePlace,
) -> None:
    """Let a group's members do something.

    Examples:

        dropless groups grant analysts CAN_QUERY:dbrx
    """
    from dropless.server.identity.principal import Grant, Holder

    with place.open() as store:
        store.accounts.grant(Holder("group", group), [Grant.parse(text) for text in grants])
    typer.echo(f"{group} has {', '.join(grants)}.")


@groups.command()
@store_options
def withdraw(
    group: _Group,
    endpoint: Annotated[
        str, typer.Argument(metavar="ENDPOINT", help="Default: the grant on all endpoints.")
    ] = "*",
    *,
    place: StorePlace,
) -> None:
    """Take a grant back.

    Examples:

        dropless groups withdraw analysts dbrx
    """
    from dropless.server.identity.principal import Holder

    with place.open() as store:
        store.accounts.withdraw(Holder("group", group), endpoint)
    where = "all endpoints" if endpoint == "*" else endpoint
    typer.echo(f"{group} has no grant on {where} any more.")


@groups.command()
@store_options
def delete(group: _Group, *, place: StorePlace) -> None:
    """Delete a group. Its members stay users, without what it gave them.

    Examples:

        dropless groups delete analysts
    """
    with place.open() as store:
        store.accounts.delete_group(group)
    typer.echo(f"{group} is deleted.")
