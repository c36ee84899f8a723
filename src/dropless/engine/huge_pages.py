"""Weights on huge pages: decoding reads all of them for every token, and with pages of 4 KiB the
processor spends a good part of that time on finding them."""

from __future__ import annotations

import ctypes
import logging
import mmap
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_HUGE = 2 * 2**20
_MADV_COLLAPSE = 25  # linux/mman.h, Linux 6.1 and newer


def use_huge_pages() -> int:
    """Move the large anonymous memory that this process has filled to huge pages, now.

    Takes a second or two for a gigabyte, in which other threads may go on.

    Returns:
        How many bytes were asked to move: 0 where the system offers none. Nothing else changes,
        and memory that is allocated later is not affected.
    """
    asked = 0
    libc = ctypes.CDLL(None, use_errno=True)
    for start, stop in _anonymous_ranges(Path("/proc/self/maps")):
        first, last = -(-start // _HUGE) * _HUGE, stop // _HUGE * _HUGE
        if last <= first:
            continue
        address, length = ctypes.c_void_p(first), ctypes.c_size_t(last - first)
        if libc.madvise(address, length, mmap.MADV_HUGEPAGE) != 0:
            continue  # not offered, or given back meanwhile
        if libc.madvise(address, length, _MADV_COLLAPSE) == 0:
            asked += last - first
    logger.debug("%d MiB on huge pages", asked // 2**20)
    return asked


def _anonymous_ranges(maps: Path) -> Iterator[tuple[int, int]]:
    """Start and end of the mappings that can be written and belong to no file."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        fields = line.split()
        if fields[1].startswith("rw-p") and (len(fields) == 5 or fields[5] == "[heap]"):
            start, stop = (int(end, 16) for end in fields[0].split("-"))
            yield start, stop
