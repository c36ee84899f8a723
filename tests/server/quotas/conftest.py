"""Databases, as those of users and tokens."""

from tests.server.identity.conftest import database_url

__all__ = ["database_url"]
