"""`dropless tables compact`, `vacuum` and `export`."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from dropless.cli.table_place import Config, Data, MaybeTableArgument, TablePlace


def compact(
    name: MaybeTableArgument = None,
    data: Data = None,
    config: Config = None,
) -> None:
    """Merge small files into large ones.

    In one table or in all. A server does it by itself, of days that are over.

    Example:

        dropless tables compact dbrx
    """
    from dropless.tables.maintenance import compact_all

    place = TablePlace(data, config)
    for each in place.chosen(name):
        done = compact_all(place.store, each)
        typer.echo(f"{each}: {done.removed} files became {done.added}")


def vacuum(
    name: MaybeTableArgument = None,
    retention_days: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="First delete rows older than so many days."),
    ] = None,
    hours: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Keep files that a version of so many hours needs; else 48."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    data: Data = None,
    config: Config = None,
) -> None:
    """Delete files that a table no longer needs.

    In one table or in all. A server does it by itself, once a day.

    Examples:

        dropless tables vacuum dbrx
        dropless tables vacuum dbrx --retention-days 30 --hours 0   # gone for good, now
    """
    from dropless.tables.maintenance import delete_old_rows, vacuum

    place = TablePlace(data, config)
    for each in place.chosen(name):
        if retention_days is not None and not dry_run:
            today = datetime.datetime.now(datetime.UTC).date()
            delete_old_rows(place.store, each, retention_days, today)
        files = vacuum(place.store, each, hours=hours, dry_run=dry_run)
        typer.echo(f"{each}: {len(files)} files {'would go' if dry_run else 'are gone'}")


def export(
    chat: Annotated[
        Path,
        typer.Option(
            metavar="FILE", dir_okay=False, help='Conversations: a line is {"messages": \\[...]}.'
        ),
    ],
    name: MaybeTableArgument = None,
    status: Annotated[int, typer.Option(metavar="CODE", help="Of the calls.")] = 200,
    user: Annotated[str | None, typer.Option(metavar="NAME", help="Who asked.")] = None,
    since: Annotated[
        datetime.datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="DAY")
    ] = None,
    until: Annotated[
        datetime.datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DAY", help="This day too; days are UTC."),
    ] = None,
    min_tokens: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of the whole conversation.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="More conditions on the table's columns.")
    ] = None,
    cut_off: Annotated[
        bool, typer.Option("--cut-off", help="Take answers too that max_tokens cut off.")
    ] = False,
    repetitions: Annotated[
        bool,
        typer.Option(
            "--repetitions", help="Keep what is there twice, and beginnings of longer ones."
        ),
    ] = False,
    test_share: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="F", help="Write so many into FILE.test.jsonl; always the same."
        ),
    ] = None,
    data: Data = None,
    config: Config = None,
) -> None:
    """Make a training or evaluation set of logged conversations.

    Each conversation comes once: a chat of three questions is three calls, of which the last has
    everything. What users wrote is in it as they wrote it, names and secrets too.

    Examples:

        dropless tables export dbrx --chat all.jsonl
        dropless tables export dbrx --chat train.jsonl --test-share 0.1 --since 2026-11-01
        dropless tables export dbrx --chat long.jsonl --min-tokens 500 --user ada@example.com
        dropless tables export --chat json.jsonl --where "request LIKE '%json_schema%'"
    """
    from dropless.tables.conversations import Wanted
    from dropless.tables.export import export_chats

    place = TablePlace(data, config)
    wanted = Wanted(
        status_code=status,
        requester=user,
        since=None if since is None else since.date(),
        until=None if until is None else until.date(),
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        where=where,
        cut_off=cut_off,
    )
    payload = place.find_payload(name)
    done = export_chats(
        place.store,
        payload,
        wanted,
        chat,
        spool=place.spool,
        repetitions=repetitions,
        test_share=test_share,
    )
    for path, count in done.written.items():
        typer.echo(f"{count} conversations in {path}")
    typer.echo(
        f"left out: {done.repeated} that are in others, {done.unfit} calls that are no chat, have "
        "no whole answer or not the tokens that were asked for",
        err=True,
    )
