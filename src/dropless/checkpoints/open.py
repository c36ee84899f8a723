"""One door to every kind of checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dropless.checkpoints.checkpoint import Checkpoint
from dropless.checkpoints.generated import GeneratedWeights
from dropless.checkpoints.gguf_file import GGUFFile
from dropless.checkpoints.safetensors_folder import SafetensorsFolder
from dropless.errors import CheckpointError


def open_checkpoint(
    path: Path, weights: Literal["checkpoint", "random"] = "checkpoint", seed: int = 0
) -> Checkpoint:
    """The checkpoint at `path`: a model folder or a GGUF file.

    `weights="random"` takes the configuration alone from there and makes every tensor up, from
    `seed`.

    Raises:
        CheckpointError: nothing usable there, or truncated, damaged or unsupported files.
        ConfigError: the configuration lacks a field.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if weights == "random":
        return GeneratedWeights(path, seed)
    return SafetensorsFolder(path) if path.is_dir() else GGUFFile(path)
