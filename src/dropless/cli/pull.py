"""`dropless pull`: fetch a model of the catalogue or the hub."""

from __future__ import annotations

from typing import Annotated

import typer


def pull(
    name: Annotated[
        str | None, typer.Argument(help="Catalogue name or hub id; default: the default model.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check a model that is there already once more.")
    ] = False,
) -> None:
    """Fetch a model into the cache and verify it.

    Every fetched file of the catalogue is held to its sha256. Ctrl-C keeps whole parts.

    Examples:

        dropless pull
        dropless pull qwen2.5-coder-0.5b-instruct
        dropless pull qwen2.5-coder-0.5b-instruct --verify
        dropless pull databricks/dbrx-instruct
    """
    from dropless.checkpoints.catalogue import catalogue, default_model
    from dropless.checkpoints.pull import pull as pull_entry
    from dropless.cli.find_model import fetch_progress, resolve_model
    from dropless.errors import SettingsError

    spec = default_model().name if name is None else name
    entry = catalogue().get(spec)
    if entry is not None:
        with fetch_progress(spec) as progress:
            path = pull_entry(entry, progress=progress, verify=verify)
        typer.echo(f"{spec} has the right sha256, {entry.sha256}, and lies at", err=True)
    elif verify:
        raise SettingsError(
            f"--verify knows the checksums of catalogue models only, not of {spec!r}; "
            "`dropless models` lists them"
        )
    else:
        path, _ = resolve_model(spec)
        typer.echo(f"{spec} lies at", err=True)
    typer.echo(path)
