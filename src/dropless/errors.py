"""The one tree of errors. A message says what was wrong, with which value, and what to do.

Every error that a user can cause or must act on derives from `DroplessError`. The server maps
this tree to HTTP in one place (`dropless.server.errors`); the command line prints the message
and exits with 1.
"""

from __future__ import annotations


class DroplessError(Exception):
    """Base of everything Dropless raises on purpose."""


class InvalidRequestError(DroplessError):
    """The caller's request is wrong and would be wrong again if repeated unchanged.

    `param` names the offending field as the caller knows it, `code` is a short machine-readable
    reason in OpenAI's style (for example `context_length_exceeded`).
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """Prompt, or prompt and requested output, can never fit into the model's context."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class GrammarError(InvalidRequestError):
    """A JSON schema, regular expression or grammar that cannot be compiled or satisfied."""

    def __init__(self, message: str, *, param: str | None = "response_format") -> None:
        super().__init__(message, param=param, code="invalid_grammar")


class ChatTemplateError(InvalidRequestError):
    """The model's chat template refused these messages or failed on them."""

    def __init__(self, message: str, *, param: str | None = "messages") -> None:
        super().__init__(message, param=param, code="chat_template_failed")


class AuthenticationError(DroplessError):
    """Who asks could not be established: no token, or one that is not valid."""


class PermissionDeniedError(DroplessError):
    """Who asks is known, and may not do this. The message names the permission that is missing."""


class ConflictError(DroplessError):
    """What is asked for contradicts what there is: a name that is taken, a change under way."""


class ResourceNotFoundError(DroplessError):
    """What a management call names does not exist: a user, a group, a token."""


class TokenStoreError(DroplessError):
    """The database of users and tokens does not answer, so nobody is let in; try again."""


class RateLimitError(DroplessError):
    """A limit of tokens or queries is reached; the same request is let in after `retry_after_s`.

    `limit_type` is the platform's name of it, for example `input_tokens_per_minute`; `current` is
    what its window would hold with this request.
    """

    def __init__(
        self, message: str, *, limit_type: str, limit: int, current: int, retry_after_s: float
    ) -> None:
        super().__init__(message)
        self.limit_type = limit_type
        self.limit = limit
        self.current = current
        self.retry_after_s = retry_after_s


class ModelNotFoundError(DroplessError):
    """No model, file, folder or catalogue entry has this name."""


class CheckpointError(DroplessError):
    """A checkpoint is missing a file, truncated, corrupt, or not of a supported kind."""


class ConfigError(CheckpointError):
    """A model configuration lacks a field or contradicts itself. The message names the field."""


class ChecksumError(CheckpointError):
    """A fetched or cached file does not have the content the catalogue promises."""


class DownloadError(DroplessError):
    """A model could not be fetched: no network, no space, an interrupted transfer."""


class SettingsError(DroplessError):
    """An engine or server setting is wrong or contradicts another one."""


class MemoryPlanError(DroplessError):
    """Weights, cache and workspace do not fit; the message says what would."""


class EngineError(DroplessError):
    """The engine failed while it worked on a request; repeating the request may succeed."""


class EngineDeadError(EngineError):
    """The engine process is gone or restarting; in-flight requests are lost to it.

    `retry_after_s` is when a retry may succeed; None when the engine does not come back by itself.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OutOfMemoryError(EngineError):
    """A step took more memory than the device has left, however small it was made. Try again after
    `retry_after_s` seconds: memory that another program has taken may be free by then."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineOverloadedError(EngineError):
    """The waiting queue is full. Try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class GuardrailBlockedError(DroplessError):
    """An endpoint's guardrails forbid a request or its answer. The message is the platform's JSON
    text about what was found."""


class EncoderUnavailableError(DroplessError):
    """The process that embeds and judges texts does not answer. What needs it is refused rather
    than let through. `retry_after_s` is when a retry may succeed."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TableError(DroplessError):
    """An inference table or its spool cannot be written, read or queried."""
