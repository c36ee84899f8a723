"""The real engine on a device whose free memory a test decides: a file names for how many tokens of
a step it is enough."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dropless.engine.config import EngineConfig
from dropless.engine.messages import EngineReady

if TYPE_CHECKING:
    from dropless.engine.engine import Engine

FILE_VARIABLE = "TEST_SHORT_MEMORY_FILE"


def build(
    config: EngineConfig, progress: Callable[[str, float], None]
) -> tuple[Engine, EngineReady]:
    """An engine whose steps run out of memory in the middle, between the model and the sampler."""
    import torch

    from dropless.engine.build import build_engine
    from dropless.engine.runner import Runner

    file = Path(os.environ[FILE_VARIABLE])
    compute = Runner._compute

    def short_compute(self: Runner, arrays: Any) -> Any:
        computed = compute(self, arrays)
        if file.exists() and len(arrays.positions) > int(file.read_text()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return computed

    Runner._compute = short_compute  # type: ignore[method-assign]
    return build_engine(config, progress)
