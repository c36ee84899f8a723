"""Sums of probabilities in whole numbers: right, and the same whatever rows stand beside."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dropless.engine.masses import log_total
from dropless.engine.sampler import Sampler
from dropless.engine.sampling_params import SamplingParams
from dropless.engine.sampling_row import SamplingRow
from tests.ops.test_versions import DEVICES

VOCAB, ROWS = 50_003, 40


@pytest.fixture
def _two_threads() -> Iterator[None]:
    """Which share out the sum of a single row."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def random_logits(rows: int, scale: float) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(rows)) * scale


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_log_total_is_the_logarithm_of_the_sum(scale: float) -> None:
    logits = random_logits(5, scale) + 7.0
    logits[:, 3:50] = -torch.inf
    expected = logits.double().logsumexp(-1, keepdim=True)
    torch.testing.assert_close(log_total(logits).double(), expected, rtol=3e-7, atol=0.0)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("device", DEVICES)
def test_a_row_is_what_it_is_alone(device: str) -> None:
    logits = random_logits(ROWS, 2.0).to(device)
    totals = log_total(logits)
    for rows in (range(1), range(3, 5), range(7, 30)):
        assert torch.equal(
            log_total(logits[rows.start : rows.stop]), totals[rows.start : rows.stop]
        )


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("device", DEVICES)
def test_a_row_gets_the_token_and_log_probabilities_that_it_gets_alone(device: str) -> None:
    logits = random_logits(ROWS, 2.0).to(device)
    kinds = [{}, {"top_p": 0.9}, {"top_k": 400, "top_p": 0.99}, {"min_p": 0.01}]
    sampler = Sampler([], torch.device(device))

    def sample(rows: list[int]) -> list[tuple[object, object]]:
        made = [SamplingRow(SamplingParams(logprobs=2, **kinds[row % 4]), seed=row) for row in rows]
        parts = sampler.launch(logits[rows], made)
        finished = [part.finish() for part in parts]
        return [
            pair for part in finished for pair in zip(part.token_ids, part.logprobs, strict=True)
        ]

    alone = [sample([row])[0] for row in range(ROWS)]
    assert len({token for token, _ in alone}) > ROWS // 2
    choice = np.random.default_rng(0)
    for size in (2, 3, 17, ROWS):
        rows = choice.permutation(ROWS)[:size].tolist()
        assert sample(rows) == [alone[row] for row in rows]
