"""How the processes of a server log: lines of text, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

LogFormat = Literal["text", "json"]

FORMATS: tuple[LogFormat, ...] = ("text", "json")
_current: LogFormat = "text"


def configure(log_format: LogFormat, *, part: str = "", redact: Callable[[str], str] = str) -> None:
    """Log to standard error from now on, in this process and those of it that ask `current`.

    `part` names the process to readers; `redact` takes out of every line what nobody is to read.
    """
    global _current
    _current = log_format
    kind = _JsonLines if log_format == "json" else _TextLines
    handler = logging.StreamHandler()
    handler.setFormatter(kind(part, redact))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def current() -> LogFormat:
    """What this process was told, for those that it starts."""
    return _current


class _TextLines(logging.Formatter):
    def __init__(self, part: str, redact: Callable[[str], str]) -> None:
        prefix = f"{part}: " if part else ""
        super().__init__(f"%(asctime)s %(levelname)s {prefix}%(message)s")
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


class _JsonLines(logging.Formatter):
    """Besides time, level, logger and message, what a record has as `extra={"fields": {...}}`."""

    def __init__(self, part: str, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._part = part
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._part:
            line["part"] = self._part
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= getattr(record, "fields", {})
        return self._redact(json.dumps(line, default=str))
