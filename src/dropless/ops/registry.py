"""One op = one signature + one plain PyTorch reference + fast versions, chosen by device."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Op(Generic[P, R]):
    """A callable with one reference and, for each device type, at most one fast version and one
    that is batch-invariant.

    The first argument lies on a device, whose type picks the version, the reference where there
    is none. `op.reference` and `op.versions` let one parametrised test hold them all together.

    A row of results (a token, of attention a query) of a batch-invariant version has the same bits
    whatever other rows there are, wherever it stands among them, and however a sequence's tokens
    are spread over steps.
    """

    def __init__(self, reference: Callable[P, R]) -> None:
        self.reference = reference
        self.versions: dict[str, Callable[P, R]] = {}
        self.invariant_versions: dict[str, Callable[P, R]] = {}
        update_wrapper(self, reference)

    def register(self, device_type: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        def add(fast: Callable[P, R]) -> Callable[P, R]:
            self.versions[device_type] = fast
            return fast

        return add

    def register_invariant(self, device_type: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        def add(invariant: Callable[P, R]) -> Callable[P, R]:
            self.invariant_versions[device_type] = invariant
            return invariant

        return add

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.versions.get(_device_type(args[0]), self.reference)(*args, **kwargs)

    def invariant(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """As the op itself, by the batch-invariant version."""
        return self.invariant_versions[_device_type(args[0])](*args, **kwargs)

    def form(self, *, batch_invariant: bool) -> Callable[P, R]:
        """The op as a layer is to call it."""
        return self.invariant if batch_invariant else self


def _device_type(first: object) -> str:
    device: torch.device = first.device  # type: ignore[attr-defined]
    return device.type
