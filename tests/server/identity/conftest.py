"""Stores of users and tokens: of each kind of database that is here."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dropless.server.identity.store import IdentityStore

# The URL of a PostgreSQL whose user may create schemas, for example
# postgresql://dropless@127.0.0.1:5432/postgres
POSTGRES = os.environ.get("DROPLESS_TEST_POSTGRES", "")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty database; of a schema of its own in PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/data/identity.db"
        return
    if not POSTGRES:
        pytest.skip("DROPLESS_TEST_POSTGRES is not set")
    import psycopg

    schema = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(POSTGRES, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
        yield f"{POSTGRES}?options=-csearch_path%3D{schema}"
        connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())


@pytest.fixture
def store(database_url: str) -> Iterator[IdentityStore]:
    store = IdentityStore(database_url)
    yield store
    store.close()
