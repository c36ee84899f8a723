"""The parts of the study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dropless.bench.study import capacity, dbrx_dense, ranks_compared
from dropless.bench.study.options import Options


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    title: str
    needs: str
    run: Callable[[Options, Path], None]  # keeps its data in the folder


PARTS = {
    part.name: part
    for part in (
        Part(
            dbrx_dense.PART,
            "DBRX against dense models, under 1 to 200 users",
            "--on slice: one GPU of 80 GB; --on whole: GPUs with 270 GB together",
            dbrx_dense.run,
        ),
        Part(capacity.PART, "Dropless against fixed capacity", "one GPU", capacity.run),
        Part(ranks_compared.PART, "Tensor against expert parallel", "two GPUs", ranks_compared.run),
    )
}
