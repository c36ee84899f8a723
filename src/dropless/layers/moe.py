"""The mixture-of-experts layer: dropless, every token reaches all its experts."""

from __future__ import annotations

from torch import Tensor

from dropless.ops.moe import fused_experts, route
from dropless.parallel.group import Group


class MoE:
    """A router over all experts and this rank's part of each expert's width."""

    def __init__(
        self,
        router: Tensor,
        gate_up: Tensor,
        down: Tensor,
        *,
        top_k: int,
        norm_p: float | None,
        group: Group,
    ) -> None:
        """
        Args:
            router: [experts, hidden], whole on every rank.
            gate_up: [experts, 2 * width, hidden]: each expert's gate rows, then its up rows.
            down: [experts, hidden, width], of any strides.
            top_k: experts a token.
            norm_p: weights of a token's experts are divided by their p-norm; None: left as the
                softmax over all experts gave them.
        """
        self._router = router
        self._gate_up = gate_up
        self._down = down
        self._top_k = top_k
        self._norm_p = norm_p
        self._group = group

    def __call__(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden] to the same."""
        topk_weights, topk_ids = route(x, self._router, self._top_k, self._norm_p)
        y = fused_experts(x, self._gate_up, self._down, topk_weights, topk_ids)
        return self._group.all_reduce(y)
