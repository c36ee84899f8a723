"""One op = one signature + one plain PyTorch reference + fast versions, chosen by device."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Op(Generic[P, R]):
    """A callable with one reference and at most one fast version per device type.

    The first argument is a tensor; its device type picks the version, the reference where there
    is none. `op.reference` and `op.versions` let one parametrised test hold them all together.
    """

    def __init__(self, reference: Callable[P, R]) -> None:
        self.reference = reference
        self.versions: dict[str, Callable[P, R]] = {}
        update_wrapper(self, reference)

    def register(self, device_type: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        def add(fast: Callable[P, R]) -> Callable[P, R]:
            self.versions[device_type] = fast
            return fast

        return add

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        assert isinstance(first, torch.Tensor)
        return self.versions.get(first.device.type, self.reference)(*args, **kwargs)
