"""A GGUF file of a tiny llama, written with the `gguf` package."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, WIDTH, VOCAB = 4, 2, 16, 64, 96, 48


def llama_metadata() -> dict[str, object]:
    return {
        "block_count": 1,
        "context_length": 128,
        "embedding_length": HIDDEN,
        "feed_forward_length": WIDTH,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500000.0,
    }


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(math.prod(shape)).standard_normal(shape).astype(np.float32)


def llama_tensors() -> dict[str, np.ndarray]:
    return {
        "token_embd.weight": random(VOCAB, HIDDEN),
        "output_norm.weight": random(HIDDEN),
        "blk.0.attn_norm.weight": random(HIDDEN),
        "blk.0.attn_q.weight": random(HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k.weight": random(KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_v.weight": random(KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_output.weight": random(HIDDEN, HEADS * HEAD_DIM),
        "blk.0.ffn_norm.weight": random(HIDDEN),
        "blk.0.ffn_gate.weight": random(WIDTH, HIDDEN),
        "blk.0.ffn_up.weight": random(WIDTH, HIDDEN),
        "blk.0.ffn_down.weight": random(HIDDEN, WIDTH),
    }


def write_gguf(
    path: Path,
    metadata: dict[str, object],
    tensors: dict[str, np.ndarray],
    architecture: str = "llama",
    kinds: dict[str, gguf.GGMLQuantizationType] | None = None,
    **writer_options: int,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture, **writer_options)
    for key, value in metadata.items():
        full_key = key if key.startswith("tokenizer.") else f"{architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(full_key, value)
        elif isinstance(value, float):
            writer.add_float32(full_key, value)
        elif isinstance(value, int):
            writer.add_uint32(full_key, value)
        else:
            writer.add_string(full_key, str(value))
    for name, tensor in tensors.items():
        kind = (kinds or {}).get(name)
        if kind is None:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
