"""Writes tiny but complete GGUF models whose tokenizers are trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers, pre_tokenizers, trainers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's what they've said; we'll see, don't you?",
    "def main(argv):\n    for i in range(10):\n        print(i ** 2, 'ok')\n    return 0\n",
    "In 1984 there were 1234567 people, 3.14159 of them at 10:45 on 2024-01-15.",
    "Das Öl fließt über die Straße; l'été est là, où ça? Привет, мир! 你好世界 日本語 한국어",
    "    indented\n\n\n\ttabs\t\tand   spaces   everywhere  \n",
] * 4


def byte_level_metadata(pre: str) -> dict[str, Any]:
    """A `gpt2` vocabulary: 400 tokens, two control, one user-defined, one unused."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    fast.train_from_iterator(CORPUS, trainer)
    tokens, merges = _vocabulary(fast)
    extra = [("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL), ("<tool>", USER_DEFINED)]
    extra += [("[PAD0]", UNUSED)]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens + [token for token, _ in extra],
        "token_type": [NORMAL] * len(tokens) + [kind for _, kind in extra],
        "merges": merges,
        "eos_token_id": len(tokens) + 1,
        "bos_token_id": len(tokens),
    }


def sentencepiece_metadata() -> dict[str, Any]:
    """A `llama` vocabulary as Llama 2's: <unk>, <s>, </s>, bytes, then pieces by falling score."""
    fast = FastTokenizer(models.BPE())
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fast.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    fast.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    tokens, merges = _vocabulary(fast)
    joined = ["".join(merge.split(" ")) for merge in merges]
    letters = [token for token in tokens if len(token) == 1]
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = list(dict.fromkeys(joined)) + letters
    return {
        "model": "llama",
        "tokens": fixed + pieces + ["<tool>"],
        "token_type": [UNKNOWN, CONTROL, CONTROL]
        + [BYTE] * 256
        + [NORMAL] * len(pieces)
        + [USER_DEFINED],
        "scores": [0.0] * len(fixed) + [-float(i) for i in range(len(pieces))] + [0.0],
        "eos_token_id": 2,
        "bos_token_id": 1,
        "unknown_token_id": 0,
        "add_bos_token": True,
    }


def write_model(path: Path, tokenizer: dict[str, Any]) -> None:
    """A one-layer Llama of random weights with this tokenizer."""
    size, hidden = len(tokenizer["tokens"]), 32
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // 2)
    writer.add_vocab_size(size)
    for key, value in tokenizer.items():
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    random = np.random.default_rng(0)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.0.{name}.weight": (hidden, hidden) for name in square}
    shapes |= {f"blk.0.{name}.weight": (hidden,) for name in ("attn_norm", "ffn_norm")}
    shapes |= {"token_embd.weight": (size, hidden), "output_norm.weight": (hidden,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32) * 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(fast: FastTokenizer) -> tuple[list[str], list[str]]:
    """Tokens by id and merges as GGUF writes them."""
    model = json.loads(fast.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(merge) for merge in model["merges"]]
