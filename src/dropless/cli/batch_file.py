"""The files of `dropless generate`: prompts, a partial file that survives a kill, results."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dropless.errors import SettingsError


class BatchFile:
    """One job: the lines of `source`, answered in any order, written to `out` in input order.

    Until all are done the results live in `out` + ".partial", one line each as it comes, below a
    first line that says which job they belong to. `settings` is whatever changes the answers.
    """

    def __init__(self, source: Path, out: Path, settings: dict[str, Any]) -> None:
        """Open the job, taking up what an earlier run left.

        Raises:
            SettingsError: a file cannot be read or written, `out` exists already, the partial file
                belongs to another job, or another run is at work on it.
        """
        self._source = source
        self._out = out
        self._partial_path = out.with_name(out.name + ".partial")
        if out.exists():
            raise SettingsError(f"{out} exists already; delete it or choose another --out")
        try:
            fingerprint, self.total = _read_through(source, settings)
            self._partial = self._partial_path.open("a+b")
            fcntl.flock(self._partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"another run is writing {self._partial_path}") from None
        except OSError as error:
            raise SettingsError(f"cannot open {error.filename}: {error.strerror}") from error
        header = json.dumps({"job": fingerprint}).encode() + b"\n"
        self._places = _take_up(self._partial, header, self._partial_path)

    @property
    def done(self) -> int:
        """How many lines have their result."""
        return len(self._places)

    @property
    def partial_path(self) -> Path:
        return self._partial_path

    def unfinished(self) -> Iterator[tuple[int, bytes]]:
        """Number (from 1) and content of each line that has no result yet; blank ones are none."""
        with self._source.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and number not in self._places:
                    yield number, line

    def add(self, number: int, result: dict[str, Any]) -> None:
        """Keep the result of a line; it is on its way to the disk when this returns.

        Raises:
            SettingsError: the disk is full or the file gone.
        """
        place = self._partial.seek(0, os.SEEK_END)
        try:
            self._partial.write(_line({"line": number, **result}))
            self._partial.flush()
        except OSError as error:
            raise SettingsError(f"cannot write {self._partial_path}: {error.strerror}") from error
        self._places[number] = place

    def finish(self) -> None:
        """Write `out` in input order and remove the partial file.

        Raises:
            SettingsError: `out` cannot be written; the partial file stays.
        """
        unsorted = self._out.with_name(self._out.name + ".sorting")
        try:
            with unsorted.open("wb") as file:
                for number in sorted(self._places):
                    self._partial.seek(self._places[number])
                    file.write(self._partial.readline())
            unsorted.replace(self._out)
            self._partial_path.unlink()
        except OSError as error:
            unsorted.unlink(missing_ok=True)
            raise SettingsError(f"cannot write {self._out}: {error.strerror}") from error
        self.close()

    def close(self) -> None:
        """Let another run take the job up."""
        self._partial.close()


def _read_through(source: Path, settings: dict[str, Any]) -> tuple[str, int]:
    """What identifies the job, and how many lines it has."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    count = 0
    with source.open("rb") as file:
        for line in file:
            digest.update(line)
            count += bool(line.strip())
    return digest.hexdigest(), count


def _take_up(partial: BinaryIO, header: bytes, path: Path) -> dict[int, int]:
    """Line number -> place in the partial file of its result. A half-written last line goes."""
    partial.seek(0)
    first = partial.readline()
    if first != header:
        if partial.readline().endswith(b"\n"):  # another job's, and it holds results
            raise SettingsError(
                f"{path} belongs to another input, model or settings; delete it to start over, or "
                "choose another --out"
            )
        partial.truncate(0)
        partial.write(header)
        partial.flush()
        return {}
    places: dict[int, int] = {}
    place = partial.tell()
    while (line := partial.readline()).endswith(b"\n"):
        places[json.loads(line)["line"]] = place
        place = partial.tell()
    partial.truncate(place)
    return places


def _line(result: dict[str, Any]) -> bytes:
    return json.dumps(result, ensure_ascii=False).encode() + b"\n"
