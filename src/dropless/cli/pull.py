"""`dropless pull`: fetch a model of the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer


def pull(
    name: Annotated[
        str | None, typer.Argument(help="Catalogue name or hub id; default: the default model.")
    ] = None,
) -> None:
    """Fetch a model into the cache and verify it.

    Examples:

        dropless pull
        dropless pull qwen2.5-coder-0.5b-instruct
        dropless pull databricks/dbrx-instruct
    """
