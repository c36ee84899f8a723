"""Rows and columns of a tensor in a safetensors file, copied into place."""

from __future__ import annotations

from io import FileIO

import torch
from torch import Tensor

from dropless.checkpoints.safetensors_header import StoredTensor
from dropless.checkpoints.slices import Slab

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SPAN_BYTES = 4 * 2**20  # read at a time where numbers are converted or columns left out
_GAP_BYTES = 128 * 2**10  # Linux reads so far ahead: leaving out less between columns saves nothing


def copy_part(out: Tensor, stored: StoredTensor, slab: Slab) -> None:
    """Copy a slab of the stored tensor into `out` [rows, columns], contiguous, on the CPU.

    Raises:
        OSError: the file cannot be read or ends too early.
    """
    row_elements = stored.shape[-1]
    whole_rows = slab.columns == (0, row_elements)
    with FileIO(stored.file) as file:
        done = 0
        for start, stop in slab.row_ranges:
            rows = out[done : done + stop - start]
            if whole_rows and out.dtype == _DTYPES[stored.dtype]:
                _read(file, stored.begin + start * row_elements * out.itemsize, rows)
            else:
                _convert_rows(file, stored, start, slab.columns, rows)
            done += stop - start


def _convert_rows(
    file: FileIO, stored: StoredTensor, start: int, columns: tuple[int, int], out: Tensor
) -> None:
    """Columns of the rows from `start` on, by way of a buffer that holds some rows at a time: from
    the first one's first column to the last one's last, or row by row if much lies between."""
    dtype, row_elements = _DTYPES[stored.dtype], stored.shape[-1]
    width = columns[1] - columns[0]
    num_rows = max(1, _SPAN_BYTES // (row_elements * dtype.itemsize))
    if (row_elements - width) * dtype.itemsize > _GAP_BYTES:
        num_rows = 1
    for begin in range(0, len(out), num_rows):
        part = out[begin : begin + num_rows]
        span = torch.empty((len(part) - 1) * row_elements + width, dtype=dtype)
        first = (start + begin) * row_elements + columns[0]
        _read(file, stored.begin + first * dtype.itemsize, span)
        part.copy_(span.as_strided((len(part), width), (row_elements, 1)))


def _read(file: FileIO, offset: int, out: Tensor) -> None:
    """Fill a contiguous tensor with the file's bytes from `offset` on."""
    file.seek(offset)
    view = out.view(-1).view(torch.uint8).numpy().data
    while view:
        count = file.readinto(view)
        if not count:
            raise OSError(f"the file ends at byte {file.tell()}")
        view = view[count:]
