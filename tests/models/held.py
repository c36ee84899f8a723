"""Every tensor that a loaded model holds, wherever in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from dropless.models.decoder import CausalLM
from dropless.ops.half_linear import PackedHalf


def held(model: CausalLM) -> dict[str, Tensor | PackedHalf]:
    """By the attributes that lead to it. What has been read only: no table that is computed."""
    found = dict(_walk(model, "model"))
    del found["model.rotary_table"]
    return found


def _walk(thing: Any, path: str) -> Iterator[tuple[str, Tensor | PackedHalf]]:
    if isinstance(thing, Tensor | PackedHalf):
        yield path, thing
    elif isinstance(thing, list | tuple):
        for i, element in enumerate(thing):
            yield from _walk(element, f"{path}[{i}]")
    elif type(thing).__module__.startswith("dropless."):
        names = [field.name for field in fields(thing)] if is_dataclass(thing) else vars(thing)
        for name in names:
            yield from _walk(getattr(thing, name), f"{path}.{name}")
