"""Endpoints that were made through the API, kept over restarts."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from dropless.errors import SettingsError
from dropless.server.configuration.endpoint_settings import EndpointSettings
from dropless.server.configuration.problems import problems
from dropless.server.configuration.settings import Configuration


class EndpointStore:
    """A JSON file, replaced as a whole, so that a crash leaves the old one or the new one. Servers
    that share it keep each other's changes, and know of them when they are started again.

    Raises:
        SettingsError: the file is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.endpoints = self._read()

    def check_apart(self, configuration: Configuration) -> None:
        """Raises SettingsError: an endpoint of the configuration is in the store too."""
        for endpoint in configuration.endpoints:
            if endpoint.name in self.endpoints:
                raise SettingsError(
                    f"the endpoint {endpoint.name!r} was made through the API and is described in "
                    f"the configuration file too; delete the one or the other ({self._path} keeps "
                    "the former)"
                )

    def keep(self, changes: Mapping[str, EndpointSettings | None]) -> None:
        """Add or replace these, and forget those that are None.

        Raises:
            SettingsError: they cannot be written.
        """
        self.endpoints = _changed(self.endpoints, changes)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._path.parent):
                self.endpoints = _changed(self._read(), changes)
                kept = self.endpoints.values()
                documents = [e.model_dump(mode="json", exclude_unset=True) for e in kept]
                self._write(json.dumps({"endpoints": documents}, indent=2))
        except OSError as error:
            raise SettingsError(
                f"the change is made, but a restart will not know of it: cannot write "
                f"{self._path}: {error.strerror}"
            ) from error

    def _read(self) -> dict[str, EndpointSettings]:
        """Raises SettingsError."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read {self._path}: {error}") from error
        try:
            kept = Configuration.model_validate_json(text)
        except ValidationError as error:
            sentences = "; ".join(sentence for _, sentence in problems(error, Configuration))
            raise SettingsError(
                f"{self._path}, where endpoints made through the API are kept, is damaged: "
                f"{sentences}"
            ) from error
        return {endpoint.name: endpoint for endpoint in kept.endpoints}

    def _write(self, text: str) -> None:
        new = self._path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


def _changed(
    endpoints: Mapping[str, EndpointSettings], changes: Mapping[str, EndpointSettings | None]
) -> dict[str, EndpointSettings]:
    merged = {**endpoints, **changes}
    return {name: endpoint for name, endpoint in merged.items() if endpoint is not None}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While no other server has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
