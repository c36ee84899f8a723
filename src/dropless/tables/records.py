"""Records in a file, so framed that a reader knows where the whole ones end.

A record is its length and its checksum, each 4 bytes, and a message. Whatever cuts a file off, a
reader gets exactly the records that are whole.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import msgspec

from dropless.tables.rows import Row

_HEAD = struct.Struct("<II")  # bytes of the message, their CRC-32


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What happened to a call. When it opens, `rows` are those to write if nothing more is ever
    heard of it; when it ends, those to write."""

    call_id: str
    ends: bool
    rows: tuple[Row, ...]


class RecordEncoder:
    """Frames records in one buffer that it uses again and again."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()

    def encode(self, record: Record) -> bytearray:
        """The framed record; valid until the next call."""
        buffer = self._buffer
        self._encoder.encode_into(record, buffer, _HEAD.size)
        message = memoryview(buffer)[_HEAD.size :]
        checksum = zlib.crc32(message)
        length = len(message)
        message.release()  # else the buffer could not change its size
        _HEAD.pack_into(buffer, 0, length, checksum)
        return buffer


_decoder = msgspec.msgpack.Decoder(Record)


def decode_records(data: bytes) -> Iterator[tuple[Record, int]]:
    """Each whole record and where it ends. Stops before the first that is cut off or damaged."""
    start = 0
    view = memoryview(data)
    while start + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, start)
        end = start + _HEAD.size + length
        message = view[start + _HEAD.size : end]
        # No message is empty: zeros that a file system leaves after a power cut are no records.
        if length == 0 or end > len(data) or zlib.crc32(message) != checksum:
            return
        try:
            record = _decoder.decode(message)
        except msgspec.MsgspecError:
            return
        yield record, end
        start = end
