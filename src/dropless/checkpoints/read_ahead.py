"""Loading at the rate of the disk: threads read what the model will ask for next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
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


@dataclass(frozen=True, slots=True)
class _Begun:
    """A part that a thread reads, or has read."""

    out: Tensor  # [rows, columns], in `buffer`
    buffer: Tensor
    done: Future[None]


class ReadAhead(CheckpointView):
    """A checkpoint that is read in a known order, once, by several threads ahead of time.

    They read parts into a ring of buffers, which are used over and over; whoever asks for a tensor
    copies its parts to where they belong. So a tensor for a GPU never lies in host memory whole,
    and what is read on a CPU is written to no fresh memory but its place.

    Use it as a context: leaving it ends the threads, even if not everything was read.
    """

    def __init__(
        self,
        checkpoint: StoredCheckpoint,
        reads: Sequence[Read],
        device: torch.device,
        num_threads: int,
        on_read: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Begins to read, for tensors on `device`. `on_read` is told the bytes of each part that
        has come to its place.

        Raises:
            CheckpointError: any of the tensors is absent, or of another kind or shape.
        """
        super().__init__(checkpoint)
        self._fill = checkpoint.fill
        self._on_read = on_read
        self._planned = deque((read, checkpoint.locate(read)) for read in reads)
        self._unbegun = _all_parts(list(self._planned))
        self._begun: deque[_Begun] = deque()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read-ahead")
        self._buffer_bytes = max((_part_bytes(*planned) for planned in self._planned), default=0)
        self._pinned = device.type == "cuda"  # a GPU copies from such memory at full speed
        for _ in range(_PARTS_AHEAD):
            self._begin_next(None)

    def read_into(self, what: Read, out: Tensor) -> None:
        """See `Checkpoint.read_into`; the next one in the order."""
        planned, slab = self._planned.popleft()
        if planned != what:
            raise RuntimeError(f"the model reads {what}, but {planned} was to be next")
        flat = out.view(-1)
        for part, offset in split_slab(slab, _PART_ELEMENTS):
            begun = self._begun.popleft()
            begun.done.result()
            flat[offset : offset + part.size].copy_(begun.out.view(-1))
            self._on_read(begun.out.nbytes)
            self._begin_next(begun.buffer)

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
        """Have the next part read, if there is one, into this buffer or a new one."""
        following = next(self._unbegun, None)
        if following is None:
            return
        read, part = following
        if buffer is None:
            buffer = torch.empty(self._buffer_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        out = buffer[: part.size * read.dtype.itemsize].view(read.dtype).view(part.shape)
        done = self._pool.submit(self._fill, out, read.name, part)
        self._begun.append(_Begun(out, buffer, done))


def _all_parts(planned: Sequence[tuple[Read, Slab]]) -> Iterator[tuple[Read, Slab]]:
    for read, slab in planned:
        for part, _ in split_slab(slab, _PART_ELEMENTS):
            yield read, part


def _part_bytes(read: Read, slab: Slab) -> int:
    """At most, of one part."""
    return min(_PART_ELEMENTS, slab.size) * read.dtype.itemsize
