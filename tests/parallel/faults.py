"""Programs of ranks that end badly, for tests. They import no torch, so they are up at once."""

from __future__ import annotations

import os

from dropless.errors import SettingsError
from dropless.parallel.rank_messages import Place, Reached

WORDS = "a setting is wrong on this rank"


def refuse(_: Place) -> None:
    """Raise an error of the tree."""
    raise SettingsError(WORDS)


def crash(place: Place) -> None:
    """Rank 2 raises something else; the others wait for rank 0."""
    if place.rank == 2:
        raise ValueError("rank 2 has a bug")
    place.link.recv_bytes()


def vanish(place: Place, status: int) -> None:
    """End without a word."""
    place.link.send(Reached("about to vanish"))
    os._exit(status)


def echo(place: Place) -> None:
    """Report every frame as a stage."""
    while True:
        place.link.send(Reached(place.link.recv_bytes().decode()))
