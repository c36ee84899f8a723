"""Hooks of Schemathesis for `benchmarks.schema_requests`: another administrator every second.

What manages accounts may delete the one that asks, take its rights or revoke its token; with one
administrator for all requests most of them would be refused.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import schemathesis

_tokens = itertools.cycle(Path(os.environ["DROPLESS_TOKENS"]).read_text().split())


@schemathesis.auth(refresh_interval=1)
class Administrator:
    def get(self, case: Any, context: Any) -> str:
        """The next one's token."""
        del case, context
        return next(_tokens)

    def set(self, case: Any, data: str, context: Any) -> None:
        del context
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}
