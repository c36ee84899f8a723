"""A tiny real engine, and one event loop for the tests of a module."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from dropless.engine.config import EngineConfig

TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    """A two-layer Llama with generated weights; 128 cache blocks of 16 tokens."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    bytes_per_block = 2 * 2 * 2 * 16 * 16 * 4  # layers, K and V, heads, head_dim, tokens, float32
    return EngineConfig(
        model_path=folder,
        weights="random",
        device="cpu",
        threads=1,
        max_running_requests=64,
        kv_cache_bytes=128 * bytes_per_block,
    )


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """Runs coroutines of several tests on one event loop, so that they can share a client."""
    with asyncio.Runner() as runner:
        yield runner
