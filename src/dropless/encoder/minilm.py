"""all-MiniLM-L6-v2 in PyTorch: a six-layer BERT whose mean token vector stands for a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dropless.errors import CheckpointError

# Depths after which the mean token vector is kept; the last is the embedding. Deeper ones know
# what a text is about, shallower ones which words it has: the safety head reads all of them.
KEPT_DEPTHS = (2, 4, 6)


class _Layer:
    """Attention among the tokens of one text, then a feed-forward layer, each with its norm."""

    def __init__(self, weights: dict[str, Tensor], prefix: str, num_heads: int, eps: float) -> None:
        def pair(name: str) -> tuple[Tensor, Tensor]:
            return weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"]

        qkv = [pair(f"attention.self.{name}") for name in ("query", "key", "value")]
        self._qkv = torch.cat([w for w, _ in qkv]), torch.cat([b for _, b in qkv])
        self._out = pair("attention.output.dense")
        self._attention_norm = pair("attention.output.LayerNorm")
        self._up = pair("intermediate.dense")
        self._down = pair("output.dense")
        self._norm = pair("output.LayerNorm")
        self._num_heads = num_heads
        self._eps = eps

    def __call__(self, x: Tensor, lengths: list[int]) -> Tensor:
        """x: [all tokens, hidden], text after text."""
        size = x.shape[1:]
        q, k, v = F.linear(x, *self._qkv).view(len(x), 3, self._num_heads, -1).unbind(1)
        mixed = [
            F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in text))
            .transpose(0, 1)
            .flatten(1)
            for text in zip(*(torch.split(part, lengths) for part in (q, k, v)), strict=True)
        ]
        attended = F.linear(torch.cat(mixed), *self._out)
        x = F.layer_norm(x + attended, size, *self._attention_norm, self._eps)
        fed = F.linear(F.gelu(F.linear(x, *self._up)), *self._down)
        return F.layer_norm(x + fed, size, *self._norm, self._eps)


class MiniLM:
    """Reads texts of at most 512 tokens. Texts of a batch lie end to end, without padding, so that
    none is changed by another."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError: files are missing, damaged or of another kind of model."""
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            weights = load_file(folder / "model.safetensors")
            if config["hidden_act"] != "gelu" or config["model_type"] != "bert":
                raise CheckpointError(f"{folder} has no BERT model with gelu")
            self._eps = float(config["layer_norm_eps"])
            self._layers = [
                _Layer(weights, f"encoder.layer.{i}", config["num_attention_heads"], self._eps)
                for i in range(config["num_hidden_layers"])
            ]
            self._words = weights["embeddings.word_embeddings.weight"]
            # All texts are of the first of BERT's two types.
            types = weights["embeddings.token_type_embeddings.weight"]
            self._places = weights["embeddings.position_embeddings.weight"] + types[0]
            self._scale = weights["embeddings.LayerNorm.weight"]
            self._shift = weights["embeddings.LayerNorm.bias"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot read the embedding model in {folder}: {error}"
            ) from error

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The mean token vector of each text after each of KEPT_DEPTHS, each of length 1:
        [texts, depths, hidden]."""
        lengths = [len(text) for text in texts]
        ids = torch.tensor([token for text in texts for token in text])
        places = torch.cat([torch.arange(length) for length in lengths])
        x = self._words[ids] + self._places[places]
        x = F.layer_norm(x, x.shape[1:], self._scale, self._shift, self._eps)
        kept = []
        for depth, layer in enumerate(self._layers, start=1):
            x = layer(x, lengths)
            if depth in KEPT_DEPTHS:
                kept.append(torch.stack([text.mean(0) for text in torch.split(x, lengths)]))
        return F.normalize(torch.stack(kept, dim=1), dim=2)
