"""The key-value part of a GGUF file, read in well under a second.

The `gguf` package wraps every string of a vocabulary in arrays of its own, which takes seconds for
the hundred thousands of them. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from dropless.errors import CheckpointError

_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """All metadata of a GGUF file (version 2 or 3, little endian); tensors are not touched.

    Raises:
        CheckpointError: not a GGUF file, of an unknown version, or cut short.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path} is not a GGUF file: it does not start with 'GGUF'")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data).metadata()
            except (struct.error, IndexError, UnicodeDecodeError, KeyError, MemoryError) as error:
                raise CheckpointError(
                    f"{path} is truncated or corrupt in its metadata ({error}); fetch it again"
                ) from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4

    def metadata(self) -> dict[str, Any]:
        version = self._scalar("I")
        if version not in (2, 3):
            raise KeyError(f"version {version} instead of 2 or 3")
        self._scalar("Q")  # number of tensors
        count = self._scalar("Q")
        result: dict[str, Any] = {}
        for _ in range(count):
            key = self._string()
            result[key] = self._value(self._scalar("I"))
        return result

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        return self._scalar(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind in _SCALARS:
            layout = struct.Struct(f"<{self._fits(count)}{_SCALARS[kind]}")
            values = list(layout.unpack_from(self._data, self._at))
            self._at += layout.size
            return values
        if kind == _STRING:
            return self._strings(self._fits(count))
        return [self._value(kind) for _ in range(self._fits(count))]

    def _strings(self, count: int) -> list[str]:
        """As `_string` so many times, in one loop: vocabularies have hundreds of thousands."""
        data, end = self._data, self._at
        length_at = struct.Struct("<Q").unpack_from
        values = []
        for _ in range(count):
            begin = end + 8
            end = begin + length_at(data, end)[0]
            if end > len(data):
                raise IndexError("a string of an array is longer than the rest of the file")
            values.append(data[begin:end].decode("utf-8", errors="replace"))
        self._at = end
        return values

    def _string(self) -> str:
        length = self._fits(self._scalar("Q"))
        end = self._at + length
        text = self._data[self._at : end]
        self._at = end
        # A token cut from the middle of a character is not UTF-8; nothing may depend on it.
        return text.decode("utf-8", errors="replace")

    def _scalar(self, code: str) -> Any:
        layout = struct.Struct(f"<{code}")
        (value,) = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return value

    def _fits(self, count: int) -> int:
        if count > len(self._data) - self._at:
            raise IndexError(f"{count} entries announced, more than the rest of the file")
        return count
