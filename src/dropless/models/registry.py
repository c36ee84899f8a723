"""From a checkpoint to a model: which family it is, and its weights read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

from dropless.checkpoints.checkpoint import Checkpoint
from dropless.checkpoints.slices import plan_slab
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
    on_read: Callable[[int], None] | None = None,
) -> CausalLM:
    """This rank's part of the model: of each expert a part, or with `expert_parallel` whole
    experts. `on_read` is told after each tensor how many bytes are held.

    Raises:
        ConfigError: as `parse_config`.
        CheckpointError: a tensor is missing, damaged or of another shape, or the checkpoint holds
            one that this model does not have.
        SettingsError: heads, widths or experts do not divide evenly over the ranks.
    """
    weights = Weights(
        checkpoint,
        dtype=dtype,
        device=device,
        group=group,
        quantization=quantization,
        expert_parallel=expert_parallel,
        on_read=on_read,
    )
    model = _build(checkpoint, weights)
    unread = [name for name in weights.unread() if not name.endswith(_SPARE)]
    if unread:
        raise CheckpointError(
            f"{checkpoint.path} holds {len(unread)} tensors that a {model.config.family} of this"
            f" configuration does not have, such as {unread[0]}; config.json and the weights do"
            " not belong together, or this is a variant that is not supported"
        )
    return model


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
        _ShapesOnly(checkpoint),
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


def _family(content: Mapping[str, Any]) -> ModuleType:
    name = content.get("model_type")
    if not isinstance(name, str) or name not in _FAMILIES:
        raise ConfigError(f"model_type is {name!r}; supported families are {', '.join(_FAMILIES)}")
    return _FAMILIES[name]


class _ShapesOnly:
    """A checkpoint whose tensors have a shape and no content."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.config = checkpoint.config
        self.eos_token_ids = checkpoint.eos_token_ids
        self.quantized = checkpoint.quantized
        self.has = checkpoint.has
        self.names = checkpoint.names

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        dim: int | None = None,
        start: int = 0,
        length: int | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> torch.Tensor:
        """See `Checkpoint.read`; any shape is right."""
        slab = plan_slab(name, shape, shape, dim, start, length)
        return torch.empty(slab.shape, dtype=dtype, device=device)
