"""Inference tables: every request as a row of a Delta table, exactly once."""

from typing import TYPE_CHECKING, Any

__all__ = ["InferenceTable", "InferenceTableSettings", "TablesSettings"]

if TYPE_CHECKING:
    from dropless.tables.inference_table import InferenceTable
    from dropless.tables.settings import InferenceTableSettings, TablesSettings


def __getattr__(name: str) -> Any:
    # Lazy: the HTTP process writes the spool and has no use for what reads tables.
    if name == "InferenceTable":
        from dropless.tables.inference_table import InferenceTable

        return InferenceTable
    if name in __all__:
        from dropless.tables import settings

        return getattr(settings, name)
    raise AttributeError(f"module 'dropless.tables' has no attribute {name!r}")
