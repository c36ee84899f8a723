"""Loading at the rate of the disk: threads read what the model will ask for next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from dropless.checkpoints.checkpoint import CheckpointView, Read
from dropless.checkpoints.slices import Slab, split_slab
from dropless.checkpoints.stored import StoredCheckpoint

_PART_ELEMENTS = 1 << 21  # one part fits into the CPU's cache between reading, checking and copying
_PARTS_AHEAD = 64  # begun and not yet taken: up to 512 MiB in float32


class _Planned:
    """A tensor that will be asked for: where it is and, from when it is begun on, its memory."""

    def __init__(self, read: Read, slab: Slab, device: torch.device) -> None:
        self.read = read
        self.slab = slab
        self._device = device
        self._result: Tensor | None = None

    def place(self, part: Slab, offset: int) -> Tensor:
        """The memory of a part, [rows, columns], which begins at element `offset`."""
        if self._result is None:
            self._result = torch.empty(self.slab.shape, dtype=self.read.dtype, device=self._device)
        return self._result.view(-1)[offset : offset + part.size].view(part.shape)

    def take(self) -> Tensor:
        """The tensor, which nothing here keeps alive any longer."""
        result, self._result = self._result, None
        if result is None:  # it has no elements
            return torch.empty(self.slab.shape, dtype=self.read.dtype, device=self._device)
        return result


@dataclass(frozen=True, slots=True)
class _Begun:
    """A part that a thread reads, or has read, into `out`."""

    out: Tensor
    buffer: Tensor | None  # whose memory `out` is; None: that of the tensor itself
    done: Future[None]


class ReadAhead(CheckpointView):
    """A checkpoint that is read in a known order, once, by several threads ahead of time.

    On a CPU the threads write straight into the tensors; for a GPU they fill pinned buffers, which
    are copied when the tensor is asked for. Parts of `_PART_ELEMENTS` are begun in order and at
    most `_PARTS_AHEAD` at a time, so memory beside the tensors is bounded whatever their size.

    Use it as a context: leaving it ends the threads, even if not everything was read.
    """

    def __init__(
        self,
        checkpoint: StoredCheckpoint,
        reads: Sequence[Read],
        device: torch.device,
        num_threads: int,
    ) -> None:
        """Begins to read.

        Raises:
            CheckpointError: any of the tensors is absent, or of another kind or shape.
        """
        super().__init__(checkpoint)
        self._fill = checkpoint.fill
        self._planned = deque(_Planned(read, checkpoint.locate(read), device) for read in reads)
        self._unbegun = _all_parts(list(self._planned))
        self._begun: deque[_Begun] = deque()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read-ahead")
        buffer_bytes = max((_part_bytes(planned) for planned in self._planned), default=0)
        for _ in range(_PARTS_AHEAD):
            self._begin_next(None if device.type == "cpu" else _pinned(buffer_bytes))

    def read_slice(
        self,
        what: Read,
        device: torch.device,  # noqa: ARG002 - known from the start
    ) -> Tensor:
        """See `Checkpoint.read`; the next one in the order."""
        planned = self._planned.popleft()
        if planned.read != what:
            raise RuntimeError(f"the model reads {what}, but {planned.read} was to be next")
        for part, offset in split_slab(planned.slab, _PART_ELEMENTS):
            begun = self._begun.popleft()
            begun.done.result()
            if begun.buffer is not None:
                planned.place(part, offset).copy_(begun.out)
            self._begin_next(begun.buffer)
        return planned.take()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _begin_next(self, buffer: Tensor | None) -> None:
        """Have the next part read, if there is one."""
        following = next(self._unbegun, None)
        if following is None:
            return
        planned, part, offset = following
        if buffer is None:
            out = planned.place(part, offset)
        else:
            out = buffer.view(planned.read.dtype)[: part.size].view(part.shape)
        done = self._pool.submit(self._fill, out, planned.read.name, part)
        self._begun.append(_Begun(out, buffer, done))


def _all_parts(tensors: Sequence[_Planned]) -> Iterator[tuple[_Planned, Slab, int]]:
    for planned in tensors:
        for part, offset in split_slab(planned.slab, _PART_ELEMENTS):
            yield planned, part, offset


def _part_bytes(planned: _Planned) -> int:
    """At most, of one part."""
    return min(_PART_ELEMENTS, planned.slab.size) * planned.read.dtype.itemsize


def _pinned(num_bytes: int) -> Tensor:
    """Memory that a GPU copies from at full speed, for any dtype."""
    return torch.empty(-(-num_bytes // 4) * 4, dtype=torch.uint8, pin_memory=True)
