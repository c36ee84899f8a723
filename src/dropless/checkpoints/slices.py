"""Which rows and columns of a stored matrix a requested slice covers: shared by all readers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dropless.errors import CheckpointError

_ALIGNMENT = 256  # rows: heads, and the blocks of GGUF, are not cut in two more often than needed


@dataclass(frozen=True, slots=True)
class Slab:
    """A slice as rows and columns of the stored tensor seen as `[rows, columns]`.

    A vector of n elements is seen as one row of n columns.
    """

    row_ranges: tuple[tuple[int, int], ...]  # half-open, in order; more than one for split views
    columns: tuple[int, int]  # half-open
    shape: tuple[int, ...]  # of the result

    @property
    def num_rows(self) -> int:
        return sum(stop - start for start, stop in self.row_ranges)

    @property
    def num_columns(self) -> int:
        return self.columns[1] - self.columns[0]

    @property
    def size(self) -> int:
        """Elements."""
        return self.num_rows * self.num_columns


def plan_slab(
    name: str,
    stored: tuple[int, ...],
    shape: tuple[int, ...],
    dim: int | None,
    start: int,
    length: int | None,
) -> Slab:
    """Translate a slice of the view `shape` into rows and columns of the stored tensor.

    Raises:
        CheckpointError: `shape` is neither the stored shape nor a split of its first dimension,
            or the slice leaves the tensor.
    """
    is_view = (
        len(stored) >= 1
        and len(shape) == len(stored) + 1
        and shape[2:] == stored[1:]
        and shape[0] * shape[1] == stored[0]
    )
    if shape != stored and not is_view:
        raise CheckpointError(
            f"tensor {name} has shape {list(stored)} but the configuration asks for {list(shape)};"
            " config.json and the weights do not belong together"
        )
    start, stop = _bounds(name, shape, dim, start, length)
    result = shape if dim is None else (*shape[:dim], stop - start, *shape[dim + 1 :])
    if len(shape) == 1:
        return Slab(((0, 1),), (start, stop), result)
    num_columns = shape[-1]
    num_rows = math.prod(shape[:-1])
    if dim == len(shape) - 1:
        return Slab(((0, num_rows),), (start, stop), result)
    if dim is None:
        return Slab(((0, num_rows),), (0, num_columns), result)
    # Rows that lie together for one index of `dim`, and how often the pattern repeats.
    inner = math.prod(shape[dim + 1 : -1])
    stride = shape[dim] * inner
    ranges = tuple(
        (base + start * inner, base + stop * inner) for base in range(0, num_rows, stride)
    )
    return Slab(ranges, (0, num_columns), result)


def split_slab(slab: Slab, max_elements: int) -> Iterator[tuple[Slab, int]]:
    """Cut a slab into parts of at most so many elements, whole rows if they are not longer.

    Yields each part, of shape `(rows, columns)`, and how many elements lie before it: one after
    the other the parts are the slab.
    """
    if slab.size == 0:
        return
    done = 0
    for part in _cut_rows(slab, max_elements):
        yield part, done
        done += part.size


def _cut_rows(slab: Slab, max_elements: int) -> Iterator[Slab]:
    first, last = slab.columns
    if slab.num_columns > max_elements:
        for row in (row for start, stop in slab.row_ranges for row in range(start, stop)):
            for begin in range(first, last, max_elements):
                end = min(last, begin + max_elements)
                yield Slab(((row, row + 1),), (begin, end), (1, end - begin))
        return
    most = max_elements // slab.num_columns
    most -= most % _ALIGNMENT if most > _ALIGNMENT else 0
    ranges: list[tuple[int, int]] = []
    count = 0
    for start, stop in slab.row_ranges:
        while start < stop:
            end = min(stop, start + most - count)
            ranges.append((start, end))
            count += end - start
            start = end
            if count == most:
                yield Slab(tuple(ranges), slab.columns, (count, slab.num_columns))
                ranges, count = [], 0
    if ranges:
        yield Slab(tuple(ranges), slab.columns, (count, slab.num_columns))


def _bounds(
    name: str, shape: tuple[int, ...], dim: int | None, start: int, length: int | None
) -> tuple[int, int]:
    """The half-open range along `dim`; the whole first dimension when `dim` is None."""
    size = shape[dim if dim is not None else 0]
    if dim is None:
        return 0, size
    stop = size if length is None else start + length
    if not 0 <= start <= stop <= size:
        raise CheckpointError(
            f"slice {start}:{stop} of dimension {dim} leaves tensor {name} of shape {list(shape)}"
        )
    return start, stop
