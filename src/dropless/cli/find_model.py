"""From what a user calls a model to its files, with progress while they are fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dropless.checkpoints import progress as checkpoint_progress
from dropless.checkpoints.catalogue import catalogue, default_model
from dropless.checkpoints.resolve import resolve


def resolve_model(model: str | None, *, allow_shapes: bool = False) -> tuple[Path, str]:
    """The folder or GGUF file of a model, fetched first where need be, and its name to clients: a
    catalogue name or hub id as given, of a path its last part. None is the default model.

    `allow_shapes` also takes the name of a published shape, for generated weights.

    Raises:
        ModelNotFoundError: no such model; the message lists names that are close.
        DownloadError, ChecksumError: fetching failed.
    """
    spec = default_model().name if model is None else model
    with fetch_progress(spec) as progress:
        path = resolve(spec, progress, allow_shapes=allow_shapes)
    return path, client_name(spec)


def client_name(spec: str) -> str:
    """What clients call a model: a catalogue name or hub id as given, of a path its last part."""
    path = Path(os.path.expanduser(spec))
    return path.resolve().name if os.path.exists(path) else spec


@contextmanager
def fetch_progress(spec: str) -> Iterator[checkpoint_progress.Progress]:
    """A bar with bytes and speed on standard error, which appears when there is something to show;
    where that is no terminal, a line for each stage. Ctrl-C leaves word of what is kept."""
    console = Console(stderr=True)
    bar = _Bar(console) if console.is_terminal else _Lines(console)
    try:
        with bar.shown():
            yield bar.report
    except KeyboardInterrupt:
        if bar.stage:
            console.print(f"Stopped. {_kept(spec)}", highlight=False, markup=False)
        raise


class _Lines:
    """Says each stage once."""

    def __init__(self, console: Console) -> None:
        self.stage = ""
        self._console = console

    @contextmanager
    def shown(self) -> Iterator[None]:
        yield

    def report(self, stage: str, done_bytes: int, total_bytes: int | None) -> None:
        del done_bytes
        if stage != self.stage:
            self.stage = stage
            size = f" ({total_bytes / 1e6:.0f} MB)" if total_bytes else ""
            self._console.print(f"{stage}{size}", highlight=False, markup=False, soft_wrap=True)


class _Bar(_Lines):
    """Moves as bytes come; each stage has a bar of its own."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        with self._progress:
            yield

    def report(self, stage: str, done_bytes: int, total_bytes: int | None) -> None:
        if self._task is None or stage != self.stage:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self.stage = stage
            self._task = self._progress.add_task(stage, total=total_bytes)
        self._progress.update(self._task, completed=done_bytes, total=total_bytes)


def _kept(spec: str) -> str:
    """What an interrupted fetch leaves, and how to go on."""
    entry = catalogue().get(spec)
    if entry is None:
        return "Files fetched whole are kept in the hub's cache; the same command fetches the rest."
    if entry.parts == 1:
        return "This model comes in one piece; the same command fetches it afresh."
    return "Parts fetched whole are kept; the same command goes on behind them."
