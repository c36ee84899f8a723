"""What rank 0 and the processes of the other ranks say to each other, pickled, over one socket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dropless.errors import DroplessError

STARTED = "started"  # the stage that every rank reports first: all is imported


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's place, and how it meets the others: `folder` is for `Group.join`. Frames that
    rank 0 sends come out of `link`; a stage that the program has reached goes into it."""

    rank: int
    size: int
    folder: Path
    link: Connection[Any, Any]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The first message to a new process: call `program(place, *arguments)`. The program is a
    function at the top of an importable module."""

    program: Callable[..., None]
    rank: int
    size: int
    folder: Path
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Reached:
    """This rank has come to a stage that the others wait for."""

    stage: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The last message of a program that raised. `error` is what it raised if that is of the
    error tree, so that the class survives; `traceback` is text."""

    error: DroplessError | None
    traceback: str
