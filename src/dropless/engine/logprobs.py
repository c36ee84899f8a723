"""Log probabilities of the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dropless.engine.messages import TokenLogprob


def token_logprobs(
    logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprob]:
    """The log probability of `token_ids[i]` under row i, with its `num_top[i]` most likely
    alternatives.

    Args:
        logits: [n, vocab] float32, as the model gave them.
        token_ids: n ids.
        num_top: n counts, 0 or more.
    """
    log_total = logits.logsumexp(dim=-1, keepdim=True)
    own_ids = torch.tensor(token_ids, device=logits.device).unsqueeze(1)
    own = (logits.gather(1, own_ids) - log_total).squeeze(1).tolist()
    top = logits.topk(max(num_top), dim=-1)
    top_values = (top.values - log_total).tolist()
    top_ids = top.indices.tolist()
    return [
        TokenLogprob(token_id, own[i], list(zip(top_ids[i][:count], top_values[i], strict=False)))
        for i, (token_id, count) in enumerate(zip(token_ids, num_top, strict=True))
    ]
