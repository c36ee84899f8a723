"""`dropless tokens`: personal access tokens."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dropless.cli.identity_options import StorePlace, store_options

if TYPE_CHECKING:
    from dropless.server.identity.tokens import TokenInfo

tokens = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

_UNITS = {"m": 60, "h": 3600, "d": 86400, "y": 365 * 86400}
_AsJson = Annotated[bool, typer.Option("--json", help="Everything known of them, for programs.")]


@tokens.callback()
def about() -> None:
    """Create, list and revoke personal access tokens.

    As soon as there is one, servers ask for one.
    """


@tokens.command()
@store_options
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is.")],
    grant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GRANT",
            help="What they may do, as CAN_QUERY or CAN_QUERY:dbrx. Makes the user, if new.",
        ),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GRANT", help="What at most this token may do; default: all they may."
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="After 30m, 12h, 90d or 1y; default: never.")
    ] = None,
    comment: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "",
    *,
    place: StorePlace,
) -> None:
    """Create a token. It is printed once; only its hash is kept.

    Examples:

        dropless tokens create alice@example.com --grant CAN_MANAGE    the first: an administrator
        dropless tokens create bob@example.com --grant CAN_QUERY --expires 90d
        dropless tokens create bob@example.com --scope CAN_QUERY:dbrx --comment "nightly job"
        TOKEN=$(dropless tokens create bob@example.com)
    """
    from dropless.errors import ConflictError
    from dropless.server.identity.principal import Grant, Holder, check_name

    grants = [Grant.parse(text) for text in grant or ()]
    scopes = [Grant.parse(text) for text in scope or ()]
    lifetime_s = None if expires is None else _seconds(expires)
    check_name(name)
    with place.open(create=bool(grants)) as store:
        if grants:
            try:
                store.accounts.create(name, grants=grants)
            except ConflictError:
                store.accounts.grant(Holder("principal", name), grants)
        token, info = store.tokens.create(
            name, created_by="command line", comment=comment, lifetime_s=lifetime_s, scopes=scopes
        )
    typer.echo(
        f"{info.token_id}... for {name}, {_expiry(info)}. Keep the token now: it is not shown "
        "again.",
        err=True,
    )
    typer.echo(token.value)


@tokens.command("list")
@store_options
def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Whose; default: everybody's.")
    ] = None,
    as_json: _AsJson = False,
    *,
    place: StorePlace,
) -> None:
    """List tokens, without their secrets.

    Examples:

        dropless tokens list
        dropless tokens list alice@example.com
        dropless tokens list --json
    """
    from rich.console import Console
    from rich.table import Table

    with place.open() as store:
        infos = store.tokens.list(name)
    if as_json:
        typer.echo(json.dumps([_facts(info) for info in infos], indent=2))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("token", "owner", "may do at most", "expires", "last used", "comment"):
        table.add_column(column)
    for info in infos:
        table.add_row(
            info.token_id,
            info.owner,
            ", ".join(map(str, info.scopes)) or "all its owner may",
            _time(info.expires_at),
            _time(info.last_used_at),
            info.comment,
        )
    Console(highlight=False, markup=False).print(table)


@tokens.command()
@store_options
def show(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Its first 14 characters.")],
    *,
    place: StorePlace,
) -> None:
    """Show all that is known of a token, as JSON.

    Examples:

        dropless tokens show dlp_4fGh7Kq2Zx
    """
    with place.open() as store:
        typer.echo(json.dumps(_facts(store.tokens.get(token_id)), indent=2))


@tokens.command()
@store_options
def revoke(
    token_ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Their first 14 characters.")
    ],
    *,
    place: StorePlace,
) -> None:
    """Revoke tokens: no server lets them in from this moment on.

    Examples:

        dropless tokens revoke dlp_4fGh7Kq2Zx
    """
    with place.open() as store:
        for token_id in token_ids:
            store.tokens.revoke(token_id)
            typer.echo(f"{token_id} is revoked.")


def _seconds(text: str) -> int:
    from dropless.errors import SettingsError

    match = re.fullmatch(r"([1-9]\d{0,8})([mhdy])", text)
    if match is None:
        raise SettingsError(f"--expires is {text!r}; write 30m, 12h, 90d or 1y")
    return int(match[1]) * _UNITS[match[2]]


def _facts(info: TokenInfo) -> dict[str, Any]:
    return {
        "token_id": info.token_id,
        "owner": info.owner,
        "owner_kind": info.owner_kind,
        "scopes": [str(scope) for scope in info.scopes],
        "comment": info.comment,
        "created_by": info.created_by,
        "created_at": info.created_at,
        "expires_at": info.expires_at,
        "last_used_at": info.last_used_at,
    }


def _expiry(info: TokenInfo) -> str:
    return "which does not expire" if info.expires_at is None else f"until {_time(info.expires_at)}"


def _time(at: int | None) -> str:
    """Of milliseconds since 1970, in the zone of this machine."""
    return "never" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at / 1000))
