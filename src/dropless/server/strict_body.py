"""What the bodies of requests have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictBody(BaseModel):
    """Strict types, finite numbers; other fields are kept in `model_extra` to be judged."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
