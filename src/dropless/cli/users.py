"""`dropless users`: who may use the servers, and what they may do."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dropless.cli.identity_options import StorePlace, store_options

users = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

_Name = Annotated[str, typer.Argument(metavar="NAME")]


@users.callback()
def about() -> None:
    """Create, list and delete users, and say what they may do.

    A grant is CAN_VIEW, CAN_QUERY or CAN_MANAGE, of which each includes those before it: on all
    endpoints, or on one as CAN_QUERY:dbrx. CAN_MANAGE on all makes an administrator.
    """


@users.command()
@store_options
def create(
    name: _Name,
    grant: Annotated[
        list[str] | None, typer.Option(metavar="GRANT", help="What they may do.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(metavar="GROUP", help="Whom they belong to.")
    ] = None,
    service_principal: Annotated[
        bool, typer.Option("--service-principal", help="A program, not a person.")
    ] = False,
    *,
    place: StorePlace,
) -> None:
    """Create a user or service principal.

    Examples:

        dropless users create alice@example.com --grant CAN_MANAGE
        dropless users create bob@example.com --group analysts
        dropless users create nightly-report --service-principal --grant CAN_QUERY:dbrx
    """
    from dropless.server.identity.principal import Grant, PrincipalKind, check_name

    grants = [Grant.parse(text) for text in grant or ()]
    kind: PrincipalKind = "service_principal" if service_principal else "user"
    check_name(name)
    with place.open(create=not group) as store:
        store.accounts.create(name, kind, grants, group or ())
    typer.echo(f"{name} is here; give them a token with `dropless tokens create {name}`.")


@users.command("list")
@store_options
def list_(
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything known of them, for programs.")
    ] = False,
    *,
    place: StorePlace,
) -> None:
    """List users and service principals, with their own grants.

    Examples:

        dropless users list
        dropless users list --json
    """
    from rich.console import Console
    from rich.table import Table

    with place.open() as store:
        accounts = store.accounts.principals()
    if as_json:
        facts = [
            {
                "name": account.name,
                "kind": account.kind,
                "groups": account.groups,
                "grants": [str(grant) for grant in account.grants],
                "created_at": account.created_at,
            }
            for account in accounts
        ]
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("name", "kind", "groups", "grants"):
        table.add_column(column)
    for account in accounts:
        table.add_row(
            account.name,
            account.kind.replace("_", " "),
            ", ".join(account.groups),
            ", ".join(map(str, account.grants)),
        )
    Console(highlight=False, markup=False).print(table)


@users.command()
@store_options
def grant(
    name: _Name,
    grants: Annotated[list[str], typer.Argument(metavar="GRANT...")],
    *,
    place: StorePlace,
) -> None:
    """Let a user do something. There is one grant for each endpoint: a new one takes its place.

    Examples:

        dropless users grant bob@example.com CAN_QUERY:dbrx CAN_VIEW
    """
    from dropless.server.identity.principal import Grant, Holder

    with place.open() as store:
        store.accounts.grant(Holder("principal", name), [Grant.parse(text) for text in grants])
    typer.echo(f"{name} has {', '.join(grants)}.")


@users.command()
@store_options
def withdraw(
    name: _Name,
    endpoint: Annotated[
        str, typer.Argument(metavar="ENDPOINT", help="Default: the grant on all endpoints.")
    ] = "*",
    *,
    place: StorePlace,
) -> None:
    """Take a grant back.

    Examples:

        dropless users withdraw bob@example.com dbrx
        dropless users withdraw bob@example.com
    """
    from dropless.server.identity.principal import Holder

    with place.open() as store:
        store.accounts.withdraw(Holder("principal", name), endpoint)
    typer.echo(f"{name} has no grant of their own on {_where(endpoint)} any more.")


@users.command()
@store_options
def delete(name: _Name, *, place: StorePlace) -> None:
    """Delete a user, with their tokens: no server lets them in from this moment on.

    Examples:

        dropless users delete bob@example.com
    """
    with place.open() as store:
        store.accounts.delete(name)
    typer.echo(f"{name} is deleted, with all their tokens.")


def _where(endpoint: str) -> str:
    return "all endpoints" if endpoint == "*" else endpoint
