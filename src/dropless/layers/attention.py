"""Grouped-query attention over the paged cache, on this rank's heads, and the norm before it."""

from __future__ import annotations

from torch import Tensor

from dropless.layers.batch import ForwardBatch
from dropless.layers.linear import Linear, RowParallelLinear
from dropless.layers.norm import ResidualNorm
from dropless.layers.weights import Weights
from dropless.ops.attention import rotary_attention
from dropless.ops.attention_linear import attention_linear
from dropless.ops.half_linear import PackedHalf
from dropless.ops.moe import ExpertOutputs


class Attention:
    def __init__(
        self,
        norm: ResidualNorm,
        qkv: Linear,
        out: RowParallelLinear,
        *,
        layer: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        weights: Weights,
        clip: float | None = None,
    ) -> None:
        """`qkv` gives this rank's query heads, key heads and value heads, in that order; `clip`
        bounds all three before rotation. `num_heads` and `num_kv_heads` are of all ranks, among
        whom those of `weights` have a part."""
        self._norm = norm
        self._qkv = qkv
        self._out = out
        self._layer = layer
        self._num_heads = weights.group.slice_of(num_heads, "attention heads")[1]
        self._num_kv_heads = weights.group.slice_of(num_kv_heads, "key and value heads")[1]
        self._attend = rotary_attention.form(batch_invariant=weights.batch_invariant)
        self._attend_linear = attention_linear.form(batch_invariant=weights.batch_invariant)
        self._scale = head_dim**-0.5
        self._clip = clip

    def __call__(
        self,
        x: Tensor | ExpertOutputs,
        residual: Tensor | None,
        batch: ForwardBatch,
        rotary: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """This rank's part of what is to be added to the stream, and the stream with x in it, both
        [num_tokens, hidden]; x and residual as of `ResidualNorm`. Writes the tokens' keys and
        values to the cache. `rotary` are the tokens' rows of the rotary table."""
        k_cache, v_cache = batch.kv_caches[self._layer]
        qkv, stream = self._norm.then(self._qkv, x, residual)
        out = self._out.linear
        if isinstance(out.weight, PackedHalf):
            mixed = self._attend(
                qkv,
                rotary,
                k_cache,
                v_cache,
                batch.paged,
                self._scale,
                num_heads=self._num_heads,
                num_kv_heads=self._num_kv_heads,
                clip=self._clip,
            )
            return out(mixed.flatten(1)), stream
        part = self._attend_linear(
            qkv,
            rotary,
            k_cache,
            v_cache,
            batch.paged,
            self._scale,
            out.weight,
            out.bias,
            num_heads=self._num_heads,
            num_kv_heads=self._num_kv_heads,
            clip=self._clip,
        )
        return part, stream
