"""How a fetch tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Called with the stage in words, the bytes done and the bytes in all (None: not known)."""


def silent(stage: str, done_bytes: int, total_bytes: int | None) -> None:
    """The `Progress` of a caller that does not listen."""
