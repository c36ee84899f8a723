"""The header of a GGUF file: metadata and tensor directory, every length checked before use.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
The `gguf` package's own reader keeps a numpy object for every token of the vocabulary (seconds and
hundreds of megabytes for 150,000 tokens) and trusts the lengths it reads; this one walks over
arrays and decodes one only when asked.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from dropless.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]


@dataclass(frozen=True, slots=True)
class GGUFArray:
    """An array in the metadata, not yet decoded."""

    item_type: int
    length: int
    offset: int  # of the first item, from the start of the file


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor: where its bytes are and how they are packed."""

    file: Path
    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # slowest dimension first, as in PyTorch (GGUF stores the reverse)
    offset: int  # from the start of the file
    num_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one run along the last dimension."""
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        return int(self.shape[-1] // block * block_bytes)


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Metadata (scalars and strings as such, arrays as `GGUFArray`) and tensors by name."""

    path: Path
    metadata: dict[str, Any] = field(repr=False)
    tensors: dict[str, GGUFTensor] = field(repr=False)

    def strings(self, key: str) -> list[bytes]:
        """The items of a string array, undecoded; empty when the key is absent.

        Raises:
            CheckpointError: the key holds something else.
        """
        array = self.metadata.get(key)
        if array is None:
            return []
        if not isinstance(array, GGUFArray) or array.item_type != _STRING:
            raise CheckpointError(f"{key} in {self.path} is no array of strings")
        with self.path.open("rb") as file, _map(file.fileno()) as data:
            cursor = _Cursor(self.path, data, array.offset)
            return [cursor.bytes(key) for _ in range(array.length)]


def read_header(path: Path) -> GGUFHeader:
    """Parse and check the header of one GGUF file.

    Raises:
        CheckpointError: not a GGUF file, of another version, truncated or damaged; names the file
            and the key or tensor where it breaks off.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size < len(_MAGIC) or file.read(len(_MAGIC)) != _MAGIC:
                raise CheckpointError(f"{path} is no GGUF file (it does not begin with 'GGUF')")
            with _map(file.fileno()) as data:
                return _parse(path, data)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _map(file_number: int) -> mmap.mmap:
    return mmap.mmap(file_number, 0, access=mmap.ACCESS_READ)


class _Cursor:
    """Reads forward through a mapped file and never past its end."""

    def __init__(self, path: Path, data: mmap.mmap, position: int) -> None:
        self.path = path
        self.data = data
        self.position = position

    def take(self, count: int, what: str) -> int:
        """Step over `count` bytes; returns where they begin."""
        begin = self.position
        if count > len(self.data) - begin:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: it ends at byte {len(self.data)}, inside"
                f" {what}; delete the file and fetch it again"
            )
        self.position = begin + count
        return begin

    def scalar(self, kind: struct.Struct, what: str) -> Any:
        return kind.unpack_from(self.data, self.take(kind.size, what))[0]

    def bytes(self, what: str) -> bytes:
        length = self.scalar(_U64, what)
        begin = self.take(length, what)
        return self.data[begin : begin + length]

    def text(self, what: str) -> str:
        try:
            return self.bytes(what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8") from error

    def value(self, value_type: int, what: str) -> Any:
        if value_type == _STRING:
            return self.text(what)
        if value_type == _ARRAY:
            return self.array(what)
        if value_type not in _SCALARS:
            raise self.damaged(f"{what} has the unknown value type {value_type}")
        return self.scalar(_SCALARS[value_type], what)

    def array(self, what: str) -> GGUFArray:
        """Step over an array; its items are decoded only when asked for."""
        item_type = self.scalar(_U32, what)
        length = self.scalar(_U64, what)
        array = GGUFArray(item_type, length, self.position)
        if item_type in _SCALARS:
            self.take(length * _SCALARS[item_type].size, what)
        elif item_type == _STRING:
            self.skip_strings(length, what)
        else:
            raise self.damaged(f"{what} is an array of the unsupported type {item_type}")
        return array

    def skip_strings(self, count: int, what: str) -> None:
        """Step over so many, in one loop: vocabularies have hundreds of thousands."""
        length_at, size, limit = _U64.unpack_from, _U64.size, len(self.data)
        end = self.position
        for _ in range(count):
            if end > limit - size:
                end = limit + 1
                break
            end += size + length_at(self.data, end)[0]
        self.take(end - self.position, what)

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is damaged: {what}; delete the file and fetch it again"
        )


def _parse(path: Path, data: mmap.mmap) -> GGUFHeader:
    cursor = _Cursor(path, data, len(_MAGIC))
    version = cursor.scalar(_U32, "the version")
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{path} has GGUF version {version}; versions 2 and 3 (little-endian) are supported:"
            " convert the model again with a current llama.cpp"
        )
    tensor_count = cursor.scalar(_U64, "the tensor count")
    metadata_count = cursor.scalar(_U64, "the metadata count")
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = cursor.text("a metadata key")
        metadata[key] = cursor.value(cursor.scalar(_U32, key), f"the metadata {key}")
    entries = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise cursor.damaged(f"general.alignment is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise cursor.damaged(f"two tensors are named {name}")
        tensors[name] = _checked_tensor(cursor, name, shape, kind, start + offset)
    return GGUFHeader(path, metadata, tensors)


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type number and offset (from the data's start) of the next tensor."""
    name = cursor.text("a tensor name")
    what = f"the description of tensor {name}"
    num_dims = cursor.scalar(_U32, what)
    if not 1 <= num_dims <= _MAX_DIMS:
        raise cursor.damaged(f"tensor {name} has {num_dims} dimensions")
    dims = [cursor.scalar(_U64, what) for _ in range(num_dims)]
    return name, tuple(reversed(dims)), cursor.scalar(_U32, what), cursor.scalar(_U64, what)


def _checked_tensor(
    cursor: _Cursor, name: str, shape: tuple[int, ...], kind_number: int, offset: int
) -> GGUFTensor:
    """The tensor, once its type is known and its bytes are all in the file."""
    try:
        kind = GGMLQuantizationType(kind_number)
    except ValueError as error:
        raise cursor.damaged(f"tensor {name} has the unknown type {kind_number}") from error
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise cursor.damaged(f"tensor {name} has rows of {shape[-1]}, no multiple of {block}")
    num_bytes = math.prod(shape) // block * block_bytes
    if offset + num_bytes > len(cursor.data):
        raise CheckpointError(
            f"{cursor.path} is truncated: tensor {name} ends at byte {offset + num_bytes}, the"
            f" file at byte {len(cursor.data)}; delete the file and fetch it again"
        )
    return GGUFTensor(cursor.path, kind, shape, offset, num_bytes)
