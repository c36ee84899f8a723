"""Which experts of a mixture have how much to do.

Routers write their choices into one piece of memory that stays where it is, so that CUDA graphs
write there too. Once a second those of one step are counted on the device, and the counts fetched
without anybody waiting for them. Every rank routes every token to one of all experts, whichever
ranks compute them, so that the choices of rank 0 are those of all.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from dropless.engine.transfer import Fetched
from dropless.layers.moe import MoE
from dropless.models.decoder import CausalLM

_INTERVAL_S = 1.0


class ExpertLoad:
    """Counts of steps that were looked at: of one a second, whatever it computed."""

    def __init__(
        self,
        model: CausalLM,
        most_tokens: int,
        device: torch.device,
        interval_s: float = _INTERVAL_S,
    ) -> None:
        """Makes the mixtures of a model show their choices, for steps of up to `most_tokens`. A
        dense model has no counts."""
        layers = [block.ffn for block in model.blocks if isinstance(block.ffn, MoE)]
        config = model.config
        most_tokens += most_tokens % 2  # each layer's begin at a multiple of 16 bytes
        shape = (len(layers), most_tokens, config.top_k)
        self._choices = torch.zeros(shape, dtype=torch.int64, device=device)
        for layer, choices in zip(layers, self._choices, strict=True):
            layer.show_choices(choices)
        self._num_experts = config.num_experts
        self._interval_s = interval_s
        self._next_s = 0.0  # time.monotonic()
        self._fetched: Fetched | None = None
        self.counts: list[list[int]] = [[0] * config.num_experts for _ in layers]

    @staticmethod
    def num_bytes(num_layers: int, most_tokens: int, top_k: int) -> int:
        """What it takes on the device."""
        return num_layers * (most_tokens + 1) * top_k * torch.int64.itemsize

    def note_step(self, num_tokens: int) -> None:
        """A step of so many tokens has been launched, and nothing after it. `counts` becomes a new
        list when there is more to tell."""
        if self._fetched is not None:
            if self._fetched.is_complete():
                self._take(self._fetched)
        elif self.counts and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + self._interval_s
            self._fetched = Fetched(self._count(num_tokens))
            if self._choices.device.type == "cpu":
                self._take(self._fetched)

    def _count(self, num_tokens: int) -> Tensor:
        """[layers, experts]: how many of the step's tokens chose each."""
        chosen = self._choices[:, :num_tokens].flatten(1)
        counts = chosen.new_zeros(len(chosen), self._num_experts)
        return counts.scatter_add_(1, chosen, chosen.new_ones(1).expand_as(chosen))

    def _take(self, fetched: Fetched) -> None:
        [more] = fetched.wait()
        self.counts = (torch.tensor(self.counts) + more).tolist()
        self._fetched = None
