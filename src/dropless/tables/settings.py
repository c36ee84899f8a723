"""What of inference tables is configured: for one endpoint, and for the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError

from dropless.tables.table_name import (
    MAX_PREFIX,
    PAYLOAD_SUFFIX,
    TableName,
    default_prefix,
    is_name_part,
)


def _checked_part(text: str) -> str:
    if not is_name_part(text):
        raise PydanticCustomError(
            "table_name", "a name of 1 to 255 letters, digits, _ and -, the first no -"
        )
    return text


_NamePart = Annotated[str, AfterValidator(_checked_part)]
_Prefix = Annotated[str, Field(max_length=MAX_PREFIX), AfterValidator(_checked_part)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class InferenceTableSettings(_Section):
    """Whether and where the calls of an endpoint are logged. The table is called
    `<catalog_name>.<schema_name>.<table_name_prefix>_payload`."""

    enabled: bool = True
    catalog_name: _NamePart = "main"
    schema_name: _NamePart = "default"
    # None: the endpoint's name
    table_name_prefix: (
        Annotated[str, AfterValidator(_checked_part), Field(max_length=240)] | None
    ) = None
    sampling_fraction: float = Field(default=1.0, ge=0, le=1)  # of the calls that are logged
    retention_days: int | None = Field(default=None, ge=1)  # None: rows are kept for ever

    def table(self, endpoint: str) -> TableName:
        """The table of the endpoint of this name."""
        prefix = self.table_name_prefix or default_prefix(endpoint)
        return TableName(self.catalog_name, self.schema_name, prefix + PAYLOAD_SUFFIX)


class UsageTrackingSettings(_Section):
    """Whether the tokens of an endpoint's calls are counted in `system.serving.endpoint_usage`."""

    enabled: bool = False


class TablesSettings(_Section):
    """Where a server keeps its tables, and what waits to come into them."""

    location: str | None = None  # a folder or s3://bucket/prefix; None: DATA/tables
    storage_options: dict[str, SecretStr] = {}  # of a location that is a URL: endpoint, keys
    spool: Annotated[Path, AfterValidator(Path.expanduser)] | None = None  # None: DATA/spool
    max_spool_bytes: int = Field(default=1024**3, ge=64 * 1024**2)
    flush_seconds: float = Field(default=60.0, ge=0.1, le=3600)  # rows wait so long for others

    def location_in(self, data: Path) -> str:
        if self.location is None:
            return str(data / "tables")
        return self.location if "://" in self.location else str(Path(self.location).expanduser())

    def spool_in(self, data: Path) -> Path:
        return self.spool or data / "spool"

    def storage(self) -> dict[str, str]:
        """The storage options, keys and all."""
        return {name: value.get_secret_value() for name, value in self.storage_options.items()}
