"""From what a user calls a model to where it is on this machine."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from dropless.checkpoints.catalogue import catalogue, shapes
from dropless.checkpoints.hub import is_hub_id, pull_from_hub
from dropless.checkpoints.progress import Progress, silent
from dropless.checkpoints.pull import pull
from dropless.errors import ModelNotFoundError


def resolve(spec: str, progress: Progress = silent, *, allow_shapes: bool = False) -> Path:
    """The local folder or GGUF file of a model, fetched first where need be.

    `spec` is, in this order: a path that exists, a name of the catalogue, with `allow_shapes`
    (generated weights) the name of a published shape, a hub id `org/name`.

    Raises:
        ModelNotFoundError: it is none of these; the message lists names that are close.
        DownloadError, ChecksumError: fetching failed.
    """
    path = Path(os.path.expanduser(spec))
    if spec and os.path.exists(path):  # unlike Path.exists, False for names no file can have
        return path.resolve()
    if spec in shapes() and allow_shapes:
        return shapes()[spec]
    if spec in catalogue():
        file = pull(catalogue()[spec], progress=progress)
        return file.parent if catalogue()[spec].beside else file
    if is_hub_id(spec) and path.suffix != ".gguf":
        return pull_from_hub(spec, progress)
    raise ModelNotFoundError(_not_found(spec, allow_shapes))


def is_published(spec: str, *, allow_shapes: bool = False) -> bool:
    """Whether `resolve` takes this for a name that is known everywhere, and not for a path."""
    if os.path.exists(os.path.expanduser(spec)):
        return False
    if spec in catalogue() or (allow_shapes and spec in shapes()):
        return True
    return is_hub_id(spec) and not spec.endswith(".gguf")


def _not_found(spec: str, allow_shapes: bool) -> str:
    """What the name is not, which names are close, and where to find all."""
    names = [*catalogue(), *(shapes() if allow_shapes else ())]
    close = difflib.get_close_matches(spec.lower(), names, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    if spec in shapes():
        hint = f" {spec} is a shape without weights: add --weights random."
    return (
        f"there is no model {spec!r}: no such file or folder, no such name in the catalogue, no hub"
        f" id (org/name).{hint} `dropless models` lists what installs by name"
    )
