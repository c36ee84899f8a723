"""Fields that are not served: which are harmless to ignore, and which must be refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dropless.errors import InvalidRequestError

# They tell the provider about the caller, or how to run, but cannot change what is answered.
_HARMLESS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

# They would change the answer. Each with the values that ask for nothing and so are accepted.
_NOT_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "error_behavior": (None, "error"),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "reasoning_effort": (None, "none"),
    "refusal": (None,),
    "suffix": (None, ""),
    "use_raw_prompt": (None, True),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}


def refuse_unsupported(extra: Mapping[str, Any], where: str | None = None) -> None:
    """Raise InvalidRequestError for the first field that cannot be ignored. `where` names the
    object that holds the fields, if it is not the body itself."""
    for name, value in extra.items():
        if name in _HARMLESS:
            continue
        place = f" in {where}" if where else ""
        if name not in _NOT_SUPPORTED:
            raise InvalidRequestError(
                f"unknown field {name!r}{place}; check the spelling or leave it out",
                param=where or name,
                code="unknown_parameter",
            )
        if value not in _NOT_SUPPORTED[name]:
            raise InvalidRequestError(
                f"{name}{place} is not supported yet; leave it out",
                param=where or name,
                code="unsupported_parameter",
            )
