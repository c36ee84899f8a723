"""From a checkpoint to a model: which family it is, and its weights read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch

from dropless.checkpoints.checkpoint import Checkpoint
from dropless.checkpoints.dry_run import DryRun
from dropless.checkpoints.read_ahead import ReadAhead
from dropless.checkpoints.stored import StoredCheckpoint
from dropless.errors import CheckpointError, ConfigError
from dropless.layers.weights import WeightFormat, Weights
from dropless.models import dbrx, llama, mixtral, qwen2
from dropless.models.config import ModelConfig
from dropless.models.decoder import CausalLM
from dropless.parallel.group import SOLO, Group

_FAMILIES: dict[str, ModuleType] = {
    "dbrx": dbrx,
    "llama": llama,
    "mixtral": mixtral,
    "qwen2": qwen2,
}
# Derived from the configuration, or a tied matrix stored twice.
_SPARE = ("rotary_emb.inv_freq", "lm_head.weight")
_MOST_READERS = 8


def parse_config(content: Mapping[str, Any]) -> ModelConfig:
    """The configuration of any family, checked.

    Raises:
        ConfigError: an unknown model_type, or a field that is missing, wrong or contradicts
            another; the message names it.
    """
    return _family(content).parse_config(content)  # type: ignore[no-any-return]


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    group: Group = SOLO,
    quantization: WeightFormat = "none",
    expert_parallel: bool = False,
    batch_invariant: bool = False,
    on_read: Callable[[float], None] = lambda _: None,
) -> CausalLM:
    """This rank's part of the model: of each expert a part, or with `expert_parallel` whole
    experts. `batch_invariant`: what a token gets has the same bits whatever is computed with it.
    `on_read` is told again and again which share of the bytes has been read, up to 1.

    The model is built twice: first without memory, which tells what will be read and in which
    order, and what is wrong with it; then from what threads read ahead in this order.

    Raises:
        ConfigError: as `parse_config`.
        CheckpointError: a tensor is missing, damaged or of another shape, holds NaN or infinity,
            or is none that this model has.
        SettingsError: heads, widths or experts do not divide evenly over the ranks.
    """
    weights_of = partial(
        Weights,
        dtype=dtype,
        group=group,
        quantization=quantization,
        expert_parallel=expert_parallel,
        batch_invariant=batch_invariant,
    )
    dry_run = DryRun(checkpoint)
    weights = weights_of(dry_run, device=torch.device("meta"))
    model = _build(dry_run, weights)
    _refuse_unread(checkpoint, weights, model.config.family)
    done_bytes = 0

    def count(num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        on_read(done_bytes / dry_run.num_bytes)

    if not isinstance(checkpoint, StoredCheckpoint):
        return _build(checkpoint, weights_of(checkpoint, device=device, on_read=count))
    with ReadAhead(checkpoint, dry_run.reads, device, num_readers(group), count) as ahead:
        return _build(ahead, weights_of(ahead, device=device))


def weight_bytes(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    num_ranks: int = 1,
    quantization: WeightFormat = "none",
    expert_parallel: bool = False,
) -> int:
    """What the weights will take on one rank: counted by building the model without memory.

    Raises:
        ConfigError, SettingsError: as `load_model`.
    """
    weights = Weights(
        DryRun(checkpoint),
        dtype=dtype,
        device=torch.device("meta"),
        group=Group(0, num_ranks),
        quantization=quantization,
        expert_parallel=expert_parallel,
    )
    _build(checkpoint, weights)
    return weights.num_bytes


def _build(checkpoint: Checkpoint, weights: Weights) -> CausalLM:
    family = _family(checkpoint.config)
    model: CausalLM = family.build(family.parse_config(checkpoint.config), weights)
    return model


def _refuse_unread(checkpoint: Checkpoint, weights: Weights, family: str) -> None:
    unread = [name for name in weights.unread() if not name.endswith(_SPARE)]
    if unread:
        raise CheckpointError(
            f"{checkpoint.path} holds {len(unread)} tensors that a {family} of this"
            f" configuration does not have, such as {unread[0]}; config.json and the weights do"
            " not belong together, or this is a variant that is not supported"
        )


def num_readers(group: Group) -> int:
    """Threads of this rank beside the one that builds: a few keep a disk busy, and every core has
    work where numbers must be unpacked."""
    cores = len(os.sched_getaffinity(0)) // group.size
    return max(1, min(cores - 1, _MOST_READERS))


def _family(content: Mapping[str, Any]) -> ModuleType:
    name = content.get("model_type")
    if not isinstance(name, str) or name not in _FAMILIES:
        raise ConfigError(f"model_type is {name!r}; supported families are {', '.join(_FAMILIES)}")
    return _FAMILIES[name]
