"""`deterministic`: a request gets the same tokens and log probabilities, to the bit, whatever
shares its steps, however its prompt is cut, whatever the cache has of it, and after a preemption.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Literal

import pytest

from dropless.checkpoints.writer import write_tiny_dbrx
from dropless.engine.config import EngineConfig, Quantization

from .conftest import TINY_LLAMA
from .mixes import Loaded, alone, make_requests, together

REQUESTS, LONGEST, TOKENS = 20, 40, 20
BLOCK_SIZE = 8
BYTES_PER_BLOCK = 2 * 2 * 2 * 16 * BLOCK_SIZE * 4  # layers, K and V, heads, their size, tokens
NUM_BLOCKS = 200
MIXES = 20
FEW_BLOCKS = 8  # as many as the longest request takes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "quantization"), [("dbrx", "none"), ("dbrx", "fp8"), ("llama", "fp16")]
)
def test_a_request_gets_what_it_gets_alone(
    family: Literal["dbrx", "llama"], quantization: Quantization, tmp_path: Path
) -> None:
    if family == "dbrx":
        write_tiny_dbrx(tmp_path)
    else:
        (tmp_path / "config.json").write_text(json.dumps(TINY_LLAMA))
    loaded = Loaded.load(
        EngineConfig(
            model_path=tmp_path,
            weights="checkpoint" if family == "dbrx" else "random",
            device="cpu",
            quantization=quantization,
            deterministic=True,
            threads=1,
            block_size=BLOCK_SIZE,
            kv_cache_bytes=NUM_BLOCKS * BYTES_PER_BLOCK,
        )
    )
    choice = random.Random(len(family + quantization))
    requests = make_requests(choice, REQUESTS, vocab_size=512, longest=LONGEST, tokens=TOKENS)
    expected = {request.request_id: alone(loaded, request, NUM_BLOCKS) for request in requests}
    preemptions = hits = 0
    for _ in range(MIXES):
        engine = loaded.engine(
            num_blocks=choice.choice([NUM_BLOCKS, FEW_BLOCKS, FEW_BLOCKS]),
            budget=choice.choice([5, 17, 60, 4096]),
            rows=choice.choice([3, 20, 20]),
            prefix_caching=choice.random() < 0.7,
        )
        mix = choice.sample(requests, choice.randint(4, 12))
        answers, stats = together(engine, mix, choice)
        assert answers == {request.request_id: expected[request.request_id] for request in mix}
        preemptions += stats.preemptions
        hits += stats.prefix_hit_tokens
    assert preemptions > 0
    assert hits > 0
