"""The header of a safetensors file, checked against the file's size.

Format: 8 bytes little-endian header length, a JSON object, then the tensors' bytes.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dropless.errors import CheckpointError

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    file: Path
    dtype: str  # the format's name: F32, BF16, ...
    shape: tuple[int, ...]
    begin: int  # its first byte, counted from the start of the file
    end: int  # one past its last byte


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of the file by name, after checking that the file is as long as it says.

    Raises:
        CheckpointError: unreadable, truncated or damaged; names the file and, where known, the
            first tensor that is cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            start = 8 + header_bytes
            if size < 8 or header_bytes > _MAX_HEADER_BYTES or start > size:
                raise _damaged(path, f"it has {size} bytes, which cuts its header short")
            raw = json.loads(file.read(header_bytes))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise _damaged(path, "its header is not an object")
    tensors = {
        name: _parse_entry(path, name, entry, start)
        for name, entry in raw.items()
        if name != "__metadata__"
    }
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].end):
        end = tensor.end
        if end > size:
            raise _damaged(path, f"tensor {name} ends at byte {end}, the file at byte {size}")
    if end != size:
        raise _damaged(path, f"its tensors end at byte {end}, the file at byte {size}")
    return tensors


def _parse_entry(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    """One entry of the header; its byte range must match dtype and shape."""
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        first, last = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(path, f"the header entry of tensor {name} is malformed") from error
    if first < 0 or last < first or min(shape, default=0) < 0:
        raise _damaged(path, f"tensor {name} has the byte range {first}:{last}, shape {shape}")
    item = DTYPE_BYTES.get(dtype)
    if item is not None and last - first != item * math.prod(shape):
        raise _damaged(
            path, f"tensor {name} ({dtype}, shape {list(shape)}) has {last - first} bytes"
        )
    return StoredTensor(path, dtype, shape, start + first, start + last)


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated or damaged: {what}; delete the file and fetch it again"
    )
