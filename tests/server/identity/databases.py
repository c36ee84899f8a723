"""Empty databases of each kind."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DATABASES = ("sqlite", "postgresql")
# The URL of a PostgreSQL whose user may create schemas, for example
# postgresql://dropless@127.0.0.1:5432/postgres
POSTGRES = os.environ.get("DROPLESS_TEST_POSTGRES", "")


@contextmanager
def empty_database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a SQLite file, or of a schema of its own in PostgreSQL; skips if that is not
    here."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/data/identity.db"
        return
    if not POSTGRES:
        pytest.skip("DROPLESS_TEST_POSTGRES is not set")
    import psycopg

    schema = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(POSTGRES, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
        yield f"{POSTGRES}?options=-csearch_path%3D{schema}"
        connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())
