"""What every section of the configuration is made from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping whose keys are all known and whose values have strict types. Immutable, so that
    two configurations can be compared.

    Sequences are tuples. Validators have the mode "after": with one "before", pydantic forgets
    that a file's lists and strings stand for tuples and paths.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
