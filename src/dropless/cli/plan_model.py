"""The model that is to be planned, its configuration and its weights where they are here; and those
that were measured."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from dropless.bench.measured import Measurement
from dropless.checkpoints.catalogue import catalogue, shapes
from dropless.checkpoints.checkpoint import Checkpoint
from dropless.checkpoints.folder import read_config
from dropless.checkpoints.hub import is_hub_id, pull_from_hub
from dropless.checkpoints.open import open_checkpoint
from dropless.cli.find_model import fetch_progress, resolve_model
from dropless.models.config import ModelConfig
from dropless.models.registry import parse_config


def open_model(spec: str) -> tuple[Checkpoint, str]:
    """The model and its name. Of a folder without weights, a published shape or a model of the hub
    the configuration is enough; a catalogue model is fetched, for its file holds everything.

    Raises:
        ModelNotFoundError: no such model.
        DownloadError, ChecksumError: fetching failed.
        CheckpointError: what is there is damaged or not supported.
    """
    is_path = os.path.exists(os.path.expanduser(spec))
    if not is_path and spec not in catalogue() and spec not in shapes() and is_hub_id(spec):
        with fetch_progress(spec) as progress:
            path = pull_from_hub(spec, progress, patterns=["config.json"])
        return open_checkpoint(path, "random"), spec
    path, name = resolve_model(spec, allow_shapes=True)
    return open_checkpoint(path, "checkpoint" if _has_weights(path) else "random"), name


def measured_model(row: Measurement) -> ModelConfig:
    """What was measured: the published model, with as many layers as were there."""
    return replace(parse_config(read_config(shapes()[row.model])), num_layers=row.layers)


def _has_weights(path: Path) -> bool:
    return path.is_file() or any(path.glob("*.safetensors"))
