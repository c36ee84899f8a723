"""A step in which no kernel is launched: to see which ones there are, and to compile them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

_ALLOCATIONS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}


class _Zeros(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """New memory is zero: what no kernel has written, PyTorch's own may read as numbers of rows."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        return out.zero_() if func in _ALLOCATIONS else out


@contextmanager
def dry_run() -> Iterator[None]:
    """Meanwhile Triton's kernels are neither compiled nor launched."""
    with _instead_of_launches(lambda *_, **__: None):
        yield


@contextmanager
def compiling(executor: Executor) -> Iterator[list[Future[Any]]]:
    """Meanwhile Triton's kernels are not launched, but compiled by `executor`, each once, as soon
    as they are asked for. Gives the compilations; ends when all have."""
    run = JITFunction.run

    def compile_only(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        return run(kernel, *args, **{**kwargs, "warmup": True})

    with triton.AsyncCompileMode(executor) as mode, _instead_of_launches(compile_only):
        yield mode.raw_futures


@contextmanager
def _instead_of_launches(run: Callable[..., Any]) -> Iterator[None]:
    launch = JITFunction.run
    JITFunction.run = run
    try:
        with _Zeros():  # type: ignore[no-untyped-call]
            yield
    finally:
        JITFunction.run = launch
