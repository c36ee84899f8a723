"""Stores of users and tokens: of each kind of database that is here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dropless.server.identity.store import IdentityStore
from tests.server.identity.databases import DATABASES, empty_database


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def store(database_url: str) -> Iterator[IdentityStore]:
    store = IdentityStore(database_url)
    yield store
    store.close()
