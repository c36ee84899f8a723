"""The one place where errors become HTTP: status, error object, Retry-After.

OpenAI's paths answer with OpenAI's error object, the platform's own with its `error_code`.

OpenAI's clients retry 408, 409, 429 and every 5xx, and wait as long as Retry-After says. So a
status below 500 means "the same request will fail again", and everything that a retry can cure is
429 or 5xx.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dropless.errors import (
    AuthenticationError,
    CheckpointError,
    ConflictError,
    DownloadError,
    DroplessError,
    EncoderUnavailableError,
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    GuardrailBlockedError,
    InvalidRequestError,
    MemoryPlanError,
    ModelNotFoundError,
    OutOfMemoryError,
    PermissionDeniedError,
    RateLimitError,
    ResourceNotFoundError,
    SettingsError,
    TableError,
    TokenStoreError,
)
from dropless.server.identity.token import redacted

logger = logging.getLogger("dropless.server")

_HTTP_CODES = {
    404: "unknown_url",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    431: "request_headers_too_large",
}
_PLATFORM_CODES = {
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    405: "METHOD_NOT_ALLOWED",
    408: "REQUEST_TIMEOUT",
    409: "RESOURCE_CONFLICT",
    413: "REQUEST_TOO_LARGE",
    429: "REQUEST_LIMIT_EXCEEDED",
    499: "CANCELLED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}
_STORE_RETRY_S = 1.0
_MAX_SHOWN_VALUE = 60  # characters of a wrong value that an error message repeats


@dataclass(frozen=True)
class HttpError:
    """An error as the client sees it. `retry_after_s` becomes a Retry-After header. Messages repeat
    what was sent: a token that was sent in the wrong place is not among it."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # further ones
    platform_code: str | None = None  # where it has the platform's shape on every path

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", redacted(self.message))
        object.__setattr__(self, "param", self.param and redacted(self.param))

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        if self.platform_code is not None:
            return self.platform_body()
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def platform_body(self) -> dict[str, Any]:
        """The error object of the platform's own paths."""
        code = self.platform_code or _PLATFORM_CODES.get(self.status, "BAD_REQUEST")
        return {"error_code": code, "message": self.message}

    def response(self, platform: bool = False) -> Response:
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(_whole_seconds(self.retry_after_s))
        if self.status == 401:
            headers["www-authenticate"] = 'Bearer realm="dropless"'
        return Response(
            msgspec.json.encode(self.platform_body() if platform else self.body()),
            status_code=self.status,
            headers=headers,
            media_type="application/json",
        )


@dataclass(frozen=True)
class RateLimitHttpError(HttpError):
    """429, whose body is the same on all paths."""

    limit_type: str = ""
    limit: int = 0
    current: int = 0

    @classmethod
    def of(cls, error: RateLimitError) -> RateLimitHttpError:
        return cls(
            429,
            str(error),
            "rate_limit_exceeded",
            retry_after_s=error.retry_after_s,
            limit_type=error.limit_type,
            limit=error.limit,
            current=error.current,
        )

    def body(self) -> dict[str, Any]:
        assert self.retry_after_s is not None
        error = {
            "message": self.message,
            "type": self.type,
            "code": self.status,
            "limit_type": self.limit_type,
            "limit": self.limit,
            "current": self.current,
            "retry_after": _whole_seconds(self.retry_after_s),
        }
        return {"error": error}

    platform_body = body


def to_http_error(error: BaseException) -> HttpError:
    """Map any exception to what the client is told. Only errors that Dropless raises on purpose
    show their message; anything else is a bug whose details stay in the log."""
    match error:
        case ValidationError():
            return to_http_error(invalid_request(error))
        case InvalidRequestError():
            return _bad_request(400, str(error), error.param, error.code)
        case ModelNotFoundError():
            return _bad_request(404, str(error), "model", "model_not_found")
        case SettingsError():
            return _bad_request(400, str(error), None, "invalid_settings")
        case MemoryPlanError() | CheckpointError() | DownloadError():
            return _bad_request(400, str(error), None, "model_does_not_load")
        case ConflictError():
            return _bad_request(409, str(error), None, "conflict")
        case PermissionDeniedError():
            return HttpError(403, str(error), "permission_error", code="permission_denied")
        case ClientDisconnect():
            return HttpError(499, "the client left before the answer was complete", "client_left")
        case AuthenticationError():
            return _bad_request(401, str(error), None, "invalid_api_key")
        case ResourceNotFoundError():
            return _bad_request(404, str(error), None, "not_found")
        case RateLimitError():
            return RateLimitHttpError.of(error)
        case TokenStoreError():
            return _unavailable(str(error), "token_store_unavailable", _STORE_RETRY_S)
        case TableError():
            return _unavailable(str(error), "tables_unavailable", _STORE_RETRY_S)
        case GuardrailBlockedError():
            return HttpError(400, str(error), "content_filter", platform_code="BAD_REQUEST")
        case EncoderUnavailableError():
            return _unavailable(str(error), "encoder_unavailable", error.retry_after_s)
        case HTTPException():
            code = _HTTP_CODES.get(error.status_code)
            seen = _bad_request(error.status_code, str(error.detail), None, code)
            return replace(seen, headers=error.headers or {})
        case EngineOverloadedError():
            return _unavailable(str(error), "overloaded", error.retry_after_s)
        case OutOfMemoryError():
            return _unavailable(str(error), "out_of_memory", error.retry_after_s)
        case EngineDeadError():
            return _unavailable(str(error), "engine_unavailable", error.retry_after_s)
        case EngineError():
            return HttpError(500, str(error), "server_error", code="engine_error")
    return HttpError(
        500,
        "the server failed on this request in a way it should not; the log has the details under "
        "this response's x-request-id",
        "server_error",
        code="internal_error",
    )


async def error_response(request: Request, error: Exception) -> Response:
    """The exception handler of the application."""
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        asked = f"{request.method} {request.url.path}"
        error = HTTPException(
            error.status_code,
            f"{asked} is not served here; try POST /v1/chat/completions, POST /v1/completions, "
            "GET /v1/models, GET /health or GET /openapi.json, which has all",
            error.headers,
        )
    return to_http_error(error).response(is_platform_path(request.url.path))


def is_platform_path(path: str) -> bool:
    """Whether errors there have the platform's shape, not OpenAI's."""
    return path.startswith("/api/") or path.endswith("/invocations")


def is_bug(error: BaseException) -> bool:
    """Whether nothing in Dropless raises this on purpose."""
    return not isinstance(error, (DroplessError, ValidationError, HTTPException))


def log_unexpected(error: BaseException, request_id: str) -> None:
    """Log an exception that is no DroplessError with its stack trace, under the request's id."""
    logger.error("request %s failed unexpectedly", request_id, exc_info=error)


def _whole_seconds(seconds: float) -> int:
    """For Retry-After: never too early."""
    return max(1, math.ceil(seconds))


def _bad_request(status: int, message: str, param: str | None, code: str | None) -> HttpError:
    return HttpError(status, message, "invalid_request_error", param=param, code=code)


def _unavailable(message: str, code: str, retry_after_s: float | None) -> HttpError:
    return HttpError(503, message, "server_error", code=code, retry_after_s=retry_after_s)


def invalid_request(error: ValidationError) -> InvalidRequestError:
    """One readable sentence from pydantic's list of problems: the first, and how many more."""
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return InvalidRequestError(
            f"the body is not valid JSON: {problems[0]['ctx']['error']}", code="invalid_json"
        )
    param, message = complaint(problems[0])
    if len(problems) > 1:
        message += f" (and {len(problems) - 1} more problems)"
    return InvalidRequestError(message, param=param or None)


def complaint(problem: ErrorDetails) -> tuple[str, str]:
    """The place of one of pydantic's problems (empty: the whole), and a sentence about it."""
    param = _path(problem["loc"])
    subject = param or "the body"
    if problem["type"] == "missing":
        return param, f"{subject} is missing; this request needs it"
    if problem["type"] == "model_type":
        return param, f"{subject} must be a JSON object, not {_shown(problem['input'])}"
    asked = problem["msg"].removeprefix("Input should be ")
    if asked == problem["msg"]:  # a check of our own, in words of our own
        return param, f"{subject}: {asked}"
    return param, f"{subject} is {_shown(problem['input'])}; it must be {asked}"


def _path(location: tuple[int | str, ...]) -> str:
    """("messages", 0, "role") -> "messages[0].role"."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "[key]":
            path += f".{step}" if path else step
    return path


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _MAX_SHOWN_VALUE else text[:_MAX_SHOWN_VALUE] + "..."
