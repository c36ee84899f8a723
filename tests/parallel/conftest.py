"""Ranks whose programs live in the tests' own modules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .team import Team


@pytest.fixture(scope="package", autouse=True)
def _programs_are_importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        yield


@pytest.fixture(scope="package")
def teams(_programs_are_importable: None) -> Iterator[dict[int, Team]]:
    """Two ranks and three, at once: the tests' process is in two groups."""
    two, three = Team(2), Team(3)
    with two, three:
        yield {2: two, 3: three}
