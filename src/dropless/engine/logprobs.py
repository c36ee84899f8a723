"""Log probabilities of the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dropless.engine.masses import log_total
from dropless.engine.messages import TokenLogprob
from dropless.engine.transfer import Fetched


class TokenLogprobs:
    """The log probability of one token under each row of logits, with the row's most likely
    alternatives, on their way from the device."""

    def __init__(self, logits: Tensor, token_ids: Tensor, num_top: Sequence[int]) -> None:
        """
        Args:
            logits: [n, vocab] float32, as the model gave them.
            token_ids: [n] int64.
            num_top: n counts of alternatives, 0 or more.
        """
        total = log_total(logits)
        own = (logits.gather(1, token_ids.unsqueeze(1)) - total).squeeze(1)
        top = logits.topk(max(num_top), dim=-1)
        self._num_top = num_top
        self._fetched = Fetched(token_ids, own, top.indices, top.values - total)

    def wait(self) -> list[TokenLogprob]:
        """One entry a row."""
        token_ids, own, top_ids, top_values = (part.tolist() for part in self._fetched.wait())
        return [
            TokenLogprob(token_id, value, list(zip(ids[:count], values, strict=False)))
            for token_id, value, ids, values, count in zip(
                token_ids, own, top_ids, top_values, self._num_top, strict=True
            )
        ]
