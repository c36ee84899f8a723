"""A stream as its writer reads it: records from a position on, and how far all is done."""

from __future__ import annotations

import itertools
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dropless.tables.records import Record, decode_records
from dropless.tables.spool_folder import CHECKPOINT, segments

logger = logging.getLogger("dropless.tables")


@dataclass(frozen=True, slots=True)
class Batch:
    """Some records, each with the position at which it ends, and the position after all of them.
    `whole`: the stream has no more for now."""

    records: list[tuple[Record, int]]
    end: int
    whole: bool


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """Everything up to `position` is in the tables, but for the calls that were open then."""

    position: int = 0
    open: tuple[Record, ...] = ()


class StreamLog:
    """The folder of one stream. Its owner may append meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, position: int, max_bytes: int, *, ended: bool) -> Batch:
        """Records from this position on, of about `max_bytes`.

        What is torn or damaged ends the reading of its segment: in the last one it may be a
        record that is being written, unless the stream has `ended`; in another it is told in the
        log and passed over.
        """
        records: list[tuple[Record, int]] = []
        found = segments(self.folder)
        taken = 0
        for segment, following in itertools.zip_longest(found, found[1:]):
            if following is not None and following.start <= position:
                continue
            if taken >= max_bytes:
                return Batch(records, position, whole=False)
            position = max(position, segment.start)
            data = _read(segment.path, position - segment.start)
            taken += len(data)
            size = 0
            for record, size in decode_records(data):
                records.append((record, position + size))
            position += size
            if following is not None or ended:
                if size < len(data):
                    logger.error(
                        "inference tables: %s is damaged from byte %d on; %d bytes are passed over",
                        segment.path,
                        position - segment.start,
                        len(data) - size,
                    )
                position += len(data) - size
        return Batch(records, position, whole=True)

    def end(self) -> int:
        """The position after all that was written."""
        found = segments(self.folder)
        return found[-1].start + found[-1].path.stat().st_size if found else 0

    def checkpoint(self) -> Checkpoint:
        """The last one that was saved. Of a damaged one only the position is missed: what is in
        the tables already is known from them."""
        path = self.folder / CHECKPOINT
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=Checkpoint)
        except FileNotFoundError:
            return Checkpoint()
        except msgspec.MsgspecError:
            logger.error("inference tables: %s is damaged; calls open at it are not told", path)
            return Checkpoint()

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep the checkpoint, then delete the segments that end before it."""
        unfinished = self.folder / f"{CHECKPOINT}.new"
        with unfinished.open("wb") as file:
            file.write(msgspec.msgpack.encode(checkpoint))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.folder / CHECKPOINT)
        self.delete_until(checkpoint.position)

    def deletable(self, position: int) -> bool:
        """Whether a segment ends before this position."""
        found = segments(self.folder)
        return len(found) > 1 and found[1].start <= position

    def delete_until(self, position: int) -> None:
        """Delete the segments that another one follows and that end before this position."""
        found = segments(self.folder)
        for segment, following in itertools.pairwise(found):
            if following.start <= position:
                segment.path.unlink(missing_ok=True)

    def delete(self) -> None:
        """All of it, the checkpoint last: without its segments it says that nothing is left."""
        for segment in segments(self.folder):
            segment.path.unlink(missing_ok=True)
        (self.folder / f"{CHECKPOINT}.new").unlink(missing_ok=True)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self.folder.rmdir()


def _read(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read()
