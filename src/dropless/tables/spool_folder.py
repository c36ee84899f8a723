"""Where things lie in a spool.

    SPOOL/maintenance.lock                held by the writer that tidies the tables; its time is
                                          that of the last daily round
    SPOOL/v1/SESSION/owner.lock           held by the server process whose session this is
                     writer.lock          held by the process that moves its rows into tables
                     writer.json          how far that process is
                     STREAM/POSITION.log  a segment: records from this position of the stream on
                     STREAM/checkpoint    up to which position all is in the tables

A session is one run of one server process, a stream is what it logs of one table's endpoints. A
stream is one long file of records that is cut into segments, and a position counts its bytes from
its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FORMAT = "v1"  # another form of records gets another folder: no version reads what it cannot
OWNER_LOCK = "owner.lock"
WRITER_LOCK = "writer.lock"
WRITER_REPORT = "writer.json"
MAINTENANCE_LOCK = "maintenance.lock"
CHECKPOINT = "checkpoint"
_SUFFIX = ".log"


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    start: int  # the position of its first byte
    path: Path


def segment_path(stream: Path, start: int) -> Path:
    return stream / f"{start:020d}{_SUFFIX}"


def segments(stream: Path) -> list[Segment]:
    """Of this stream, in order; those of a stream that is not there are none."""
    return sorted(Segment(int(path.stem), path) for path in stream.glob(f"*{_SUFFIX}"))


def sessions(spool: Path) -> list[Path]:
    """The folders of all sessions, the oldest first."""
    return sorted(p for p in (spool / FORMAT).glob("*") if p.is_dir() and p.name[0] != ".")


def streams(session: Path) -> list[Path]:
    return sorted(path for path in session.glob("*") if path.is_dir())


def spooled_bytes(spool: Path) -> int:
    """How much all segments of all sessions take."""
    total = 0
    for path in (spool / FORMAT).glob(f"*/*/*{_SUFFIX}"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # moved into its tables meanwhile
            continue
    return total
