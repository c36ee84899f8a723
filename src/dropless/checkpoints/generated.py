"""Weights made up on the spot: the published shape of a model without its files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dropless.checkpoints.checkpoint import Checkpoint, Read
from dropless.checkpoints.folder import read_config, read_eos_token_ids
from dropless.checkpoints.gguf_file import GGUFFile

_STD = 0.02  # the initial scale of most published models
_WHOLE_LIMIT = 1 << 22  # elements


class GeneratedWeights(Checkpoint):
    """A checkpoint that makes any tensor it is asked for, the same each time for one seed.

    Matrices and biases are normal with deviation 0.02, norm weights near 1. A tensor of up to
    4 Mi elements is made whole on the CPU in float32 and then cut and converted: its slices agree
    with the whole on every device. A larger one is made in place on the target device, seeded by
    (seed, name, start of the slice): fast and without a copy, but ranks that cut it differently
    see different numbers.
    """

    quantized = False

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.path = path
        self.seed = seed
        if path.is_dir():
            self.config: Mapping[str, Any] = read_config(path)
            self.eos_token_ids = read_eos_token_ids(path, self.config)
        else:
            model = GGUFFile(path)
            self.config, self.eos_token_ids = model.config, model.eos_token_ids

    def has(self, name: str) -> bool:
        """True of every name, save for an output matrix that the configuration ties to the
        embedding."""
        return not (name == "lm_head.weight" and self.config.get("tie_word_embeddings"))

    def names(self) -> list[str]:
        """Empty: nothing is stored."""
        return []

    def read_into(self, what: Read, out: torch.Tensor) -> None:
        """See `Checkpoint.read_into`; any shape is right."""
        name, shape = what.name, what.shape
        mean = 1.0 if len(shape) == 1 and not name.endswith(".bias") else 0.0
        if math.prod(shape) > _WHOLE_LIMIT:
            out.normal_(mean, _STD, generator=self._generator(f"{name}:{what.start}", out.device))
            return
        whole = torch.empty(shape, dtype=torch.float32)
        whole.normal_(mean, _STD, generator=self._generator(name, torch.device("cpu")))
        if what.dim is not None:
            whole = whole.narrow(what.dim, what.start, out.shape[what.dim])
        out.copy_(whole)

    def _generator(self, what: str, device: torch.device) -> torch.Generator:
        """A random source that depends on the seed and `what` alone."""
        digest = hashlib.sha256(f"{self.seed}:{what}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))
