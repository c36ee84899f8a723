"""What tables are called."""

from __future__ import annotations

import re
from typing import NamedTuple

from dropless.errors import TableError

PAYLOAD_SUFFIX = "_payload"
MAX_PREFIX = 240  # so that the whole is a file name

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,254}")


class TableName(NamedTuple):
    """catalog.schema.table. The parts are folders too, so they have no dots and no slashes."""

    catalog: str
    schema: str
    table: str

    def __str__(self) -> str:
        return ".".join(self)

    @staticmethod
    def parse(text: str) -> TableName:
        """Raises TableError: this is no name of a table."""
        parts = text.split(".")
        if len(parts) != 3 or not all(is_name_part(part) for part in parts):
            raise TableError(
                f"{text!r} is no name of a table; it must be CATALOG.SCHEMA.TABLE of letters, "
                "digits, _ and -, as main.default.dbrx_payload"
            )
        return TableName(*parts)


USAGE = TableName("system", "serving", "endpoint_usage")
SERVED_ENTITIES = TableName("system", "serving", "served_entities")


def is_name_part(text: str) -> bool:
    return _PART.fullmatch(text) is not None


def default_prefix(endpoint: str) -> str:
    """A table name prefix for an endpoint: its name, with _ for what a table name cannot have."""
    prefix = re.sub(r"[^A-Za-z0-9_-]", "_", endpoint)[:MAX_PREFIX]
    return prefix if is_name_part(prefix) else f"_{prefix}"[:MAX_PREFIX]
