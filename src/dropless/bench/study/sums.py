"""What sums between ranks cost, so that it can be added to the times of one rank alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dropless.errors import SettingsError

SUMS_A_LAYER = 2  # behind attention and behind the feed-forward layer
_BF16 = 2  # bytes


@dataclass(frozen=True, slots=True)
class SumCost:
    """The time of one all-reduce among `ranks`, from sums measured between `measured_ranks`.

    Of the two ways to sum the faster counts. In one kernel each rank reads all others' parts: the
    measured time, and that of the further ranks' bytes over the link. NCCL's ring: the measured
    time, or the bytes that a ring of `ranks` moves over the link, whichever is longer.
    """

    ranks: int
    measured_ranks: int
    bytes_per_us: float  # over one rank's link
    sizes: tuple[float, ...]  # bytes of a tensor, ascending
    one_shot_us: tuple[float, ...]
    nccl_us: tuple[float, ...]
    source: str

    @classmethod
    def read(cls, path: Path, ranks: int) -> SumCost:
        """From results of benchmarks/all_reduce.py.

        Raises:
            SettingsError: there are none.
        """
        try:
            document = json.loads(path.read_text())
            rows, size = document["rows"], document["num_gpus"]
            largest = rows[-1]
            received = (size - 1) * 1024 * largest["kib"]
            return cls(
                ranks=ranks,
                measured_ranks=size,
                bytes_per_us=received / largest["limit_us"],
                sizes=tuple(1024 * row["kib"] for row in rows),
                one_shot_us=tuple(row["one_shot_in_a_step_us"] for row in rows),
                nccl_us=tuple(row["nccl_in_a_step_us"] for row in rows),
                source=f"{path.name}: {size} x {document['gpu']}, {document['date'][:10]}",
            )
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise SettingsError(
                f"the cost of sums between ranks is not known: {path} is not there or damaged; run"
                " benchmarks/all_reduce.py on two GPUs or more, or give --all-reduce FILE"
            ) from error

    def microseconds(self, num_bytes: float) -> float:
        """Of a tensor of so many bytes."""
        nccl = float(np.interp(num_bytes, self.sizes, self.nccl_us))
        ring = 2 * (self.ranks - 1) / self.ranks * num_bytes / self.bytes_per_us
        by_nccl = max(nccl, ring)
        if num_bytes > self.sizes[-1]:
            return by_nccl
        one_shot = float(np.interp(num_bytes, self.sizes, self.one_shot_us))
        further = (self.ranks - self.measured_ranks) * num_bytes / self.bytes_per_us
        return min(by_nccl, one_shot + further)

    def step_seconds(self, num_tokens: int, hidden_size: int, num_layers: int) -> float:
        """All sums of a step of so many tokens."""
        each = self.microseconds(_BF16 * num_tokens * hidden_size)
        return SUMS_A_LAYER * num_layers * each / 1e6
