"""What a client is told whose request or answer was stopped."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from dropless.errors import GuardrailBlockedError
from dropless.server.generation import Usage

REFUSAL = "I'm sorry, I am unable to assist with that request."

Direction = Literal["input", "output"]


def blocked(
    direction: Direction, entry: dict[str, Any], usage: Usage | None
) -> GuardrailBlockedError:
    """The error whose message is the platform's JSON text. `usage` is None if the model was not
    asked."""
    counted: dict[str, int] = {"prompt_tokens": 0, "total_tokens": 0}
    if usage is not None:
        counted = {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
    message = {
        "usage": counted,
        f"{direction}_guardrail": [entry],
        "finishReason": f"{direction}_guardrail_triggered",
    }
    return GuardrailBlockedError(msgspec.json.encode(message).decode())
