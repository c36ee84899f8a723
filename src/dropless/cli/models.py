"""`dropless models`: what installs by name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dropless.checkpoints.catalogue import CatalogueEntry, catalogue, shapes
from dropless.checkpoints.model_cache import default_cache_dir, model_path


def models(
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything known of them, for programs.")
    ] = False,
) -> None:
    """Show the models that install by name.

    Examples:

        dropless models
        dropless models --json
        dropless pull smollm2-135m-instruct
        dropless chat qwen2.5-coder-0.5b-instruct
    """
    entries = list(catalogue().values())
    if as_json:
        typer.echo(json.dumps([_facts(entry) for entry in entries], indent=2))
        return
    console = Console(highlight=False)
    console.print(_table(entries))
    console.print(f"The cache is {_short(default_cache_dir())}; each model has a folder there.")
    console.print(
        "Shapes to fill with made-up weights (--weights random): " + ", ".join(shapes()) + "."
    )


def cached_path(entry: CatalogueEntry) -> Path | None:
    """Where the entry's file lies in the cache. A file has its name there only once its sha256
    was right."""
    path = model_path(entry, default_cache_dir())
    return path if path.is_file() else None


def _facts(entry: CatalogueEntry) -> dict[str, object]:
    path = cached_path(entry)
    return {**asdict(entry), "cached_path": None if path is None else str(path)}


def _table(entries: list[CatalogueEntry]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("model")
    table.add_column("size", justify="right")
    table.add_column("licence")
    table.add_column("cached")
    for entry in entries:
        default = " (default)" if entry.default else ""
        about = f"[bold]{entry.name}[/]{default}\n{entry.title}, {entry.format}. {entry.note}"
        cached = "yes" if cached_path(entry) else "no"
        table.add_row(about, f"{entry.size_bytes / 1e6:.0f} MB", entry.licence, cached)
    return table


def _short(path: Path) -> str:
    """With ~ for the user's own folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
