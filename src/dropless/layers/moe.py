"""The mixture-of-experts layer, dropless: every token reaches all its experts. And the norm before
it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dropless.layers.linear import Rows
from dropless.layers.norm import ResidualNorm
from dropless.layers.weights import Weights
from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.moe import ExpertOutputs, unsummed_experts


@dataclass(frozen=True, slots=True)
class Expert:
    """Where one expert's matrices are stored."""

    gate: Rows  # [width, hidden]
    up: Rows  # [width, hidden]
    down: Rows | str  # rows [width, hidden] of its transpose, or the name of a [hidden, width]


class MoE:
    """A router over all experts, and of the experts this rank's part: of each expert an even part
    of its width, or with expert parallelism an even part of the experts, whole."""

    def __init__(
        self,
        weights: Weights,
        norm: ResidualNorm,
        router: str,
        experts: Sequence[Expert],
        hidden_size: int,
        width: int,
        *,
        top_k: int,
        norm_p: float | None,
    ) -> None:
        """
        Args:
            router: the name of its matrix [experts, hidden].
            top_k: experts a token.
            norm_p: weights of a token's experts are divided by their p-norm; None: left as the
                softmax over all experts gave them.
        """
        self._norm = norm
        self._router = weights.matrix(router, (len(experts), hidden_size), weights.dtype)
        self._first_expert = 0
        if weights.expert_parallel:
            first, count = weights.group.slice_of(len(experts), f"{router}: experts")
            self._first_expert, experts = first, experts[first : first + count]
            cut = (0, width)
        else:
            cut = weights.group.slice_of(width, f"{router}: the experts' width")
        self._gate_up, self._down = _read_experts(weights, experts, hidden_size, width, cut)
        self._experts = unsummed_experts.form(batch_invariant=weights.batch_invariant)
        self._top_k = top_k
        self._norm_p = norm_p
        self._choices: Tensor | None = None

    def show_choices(self, ids: Tensor) -> None:
        """From now on, write which of all experts a step's tokens go to into the first rows of
        `ids` [most tokens of a step, top_k] int64."""
        self._choices = ids

    def __call__(self, x: Tensor, residual: Tensor) -> tuple[Tensor | ExpertOutputs, Tensor]:
        """This rank's part of what is to be added to the stream, which may be left unsummed, and
        the stream with x in it [num_tokens, hidden]; x and residual as of `ResidualNorm`."""
        choices = None if self._choices is None else self._choices[: len(x)]
        routed, stream = self._norm.then_route(
            self._router, x, residual, self._top_k, self._norm_p, self._down, choices
        )
        if self._first_expert:
            routed = routed.for_experts_from(self._first_expert)
        return self._experts(routed, self._gate_up, self._down), stream


def _read_experts(
    weights: Weights, experts: Sequence[Expert], hidden: int, width: int, cut: tuple[int, int]
) -> tuple[Tensor | Fp8Tensor, Tensor | Fp8Tensor]:
    """`gate_up` [experts, 2 * own width, hidden] and `down` [experts, hidden, own width], filled
    one matrix of one expert at a time. `cut` is this rank's start and length of the width."""
    start, own = cut
    dtype = weights.dtype
    lies_transposed = isinstance(experts[0].down, Rows)
    gate_up = weights.room((len(experts), 2 * own, hidden), dtype)
    down = weights.room((len(experts), hidden, own), dtype, lies_transposed=lies_transposed)
    for i, expert in enumerate(experts):
        expert.gate.fill(weights, gate_up[i][:own], hidden, cut)
        expert.up.fill(weights, gate_up[i][own:], hidden, cut)
        if isinstance(expert.down, Rows):
            expert.down.fill(weights, down[i], hidden, cut, stored_transposed=True)
        else:
            weights.fill(down[i], expert.down, (hidden, width), dim=1, start=start, length=own)
    return gate_up, down
