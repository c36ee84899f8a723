"""Sampling of one row in plain numpy, written from the parameters' definitions."""

from __future__ import annotations

import numpy as np

from dropless.engine.sampling_params import SamplingParams


def distribution(
    logits: np.ndarray,
    params: SamplingParams,
    prompt: list[int],
    generated: list[int],
    *,
    forbidden: list[int],
    allowed: np.ndarray | None,
) -> np.ndarray:
    """The probabilities [vocab] that a token is drawn from; one-hot if greedy."""
    x = logits.astype(np.float64).copy()
    for token in set(prompt) | set(generated):
        x[token] = (
            x[token] / params.repetition_penalty
            if x[token] > 0
            else x[token] * params.repetition_penalty
        )
        times = generated.count(token)
        x[token] -= params.frequency_penalty * times + params.presence_penalty * (times > 0)
    for token, bias in params.logit_bias.items():
        x[token] += bias
    x[forbidden] = -np.inf
    if allowed is not None:
        x[~allowed] = -np.inf
    if params.greedy:
        return np.eye(len(x))[int(x.argmax())]
    x = (x - x.max()) / params.temperature
    if params.top_k:
        kth = np.sort(x)[::-1][min(params.top_k, len(x)) - 1]
        x[x < kth] = -np.inf
    if params.top_p < 1.0:
        weights = np.sort(np.exp(x))[::-1]
        before = np.cumsum(weights) - weights
        kept = int((before < params.top_p * weights.sum()).sum())
        x[x < np.sort(x)[::-1][kept - 1]] = -np.inf
    if params.min_p:
        x[x < np.log(params.min_p)] = -np.inf
    return np.exp(x) / np.exp(x).sum()


def tokens_at(probabilities: np.ndarray, point: float, slack: float = 1e-5) -> set[int]:
    """The tokens in whose part of the cumulative distribution `point` lies, or almost lies."""
    end = probabilities.cumsum()
    start = end - probabilities
    near = (start - slack <= point) & (point <= end + slack) & (probabilities > 0)
    return set(np.flatnonzero(near).tolist())
