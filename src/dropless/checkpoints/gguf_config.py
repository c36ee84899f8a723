"""GGUF metadata as the configuration that Hugging Face publishes for the same model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dropless.checkpoints.gguf_header import GGUFHeader
from dropless.errors import ConfigError

ARCHITECTURES = ("llama", "qwen2", "dbrx")

# Tokens that end a turn or a text by convention; llama.cpp stops at them whatever eos_token_id is.
_END_TOKENS = frozenset(
    {b"<|im_end|>", b"<|endoftext|>", b"<|eot_id|>", b"<|eom_id|>", b"<|end_of_text|>"}
)


class _Metadata:
    """Typed look-ups in the metadata of one file, under its architecture's prefix."""

    def __init__(self, header: GGUFHeader) -> None:
        self.header = header
        self.architecture = self.text("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(
                f"{header.path} has the architecture {self.architecture!r}; supported are"
                f" {', '.join(ARCHITECTURES)}"
            )

    def text(self, key: str) -> str:
        value = self._required(key)
        if not isinstance(value, str):
            raise ConfigError(f"{key} in {self.header.path} is {value!r}, not a text")
        return value

    def integer(self, suffix: str) -> int:
        key = f"{self.architecture}.{suffix}"
        value = self._required(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{key} in {self.header.path} is {value!r}, not a positive integer")
        return value

    def real(self, suffix: str) -> float:
        key = f"{self.architecture}.{suffix}"
        value = self._required(key)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise ConfigError(f"{key} in {self.header.path} is {value!r}, not a positive number")
        # Stored as float32: 1e-5 arrives as 9.999999747e-06. The shortest float32 text undoes it.
        return float(str(np.float32(value)))

    def has(self, suffix: str) -> bool:
        return f"{self.architecture}.{suffix}" in self.header.metadata

    def _required(self, key: str) -> Any:
        if key not in self.header.metadata:
            raise ConfigError(
                f"{self.header.path} lacks the metadata {key}, which the model cannot do without;"
                " convert the model again with a current llama.cpp"
            )
        return self.header.metadata[key]


def config_from_metadata(header: GGUFHeader) -> dict[str, Any]:
    """The content of the model's config.json, from the metadata and the shapes of a GGUF file.

    Raises:
        ConfigError: an architecture that is not supported, or a key that is missing, malformed or
            contradicts another; the message names it.
    """
    metadata = _Metadata(header)
    config = _dbrx(metadata) if metadata.architecture == "dbrx" else _llama_like(metadata)
    config["vocab_size"] = _vocab_size(header)
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    return config


def eos_token_ids(header: GGUFHeader) -> tuple[int, ...]:
    """The ids that end generation: those the metadata names, then the customary end tokens that
    the vocabulary holds."""
    ids = [
        value
        for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        if isinstance(value := header.metadata.get(key), int)
    ]
    tokens = header.strings("tokenizer.ggml.tokens")
    ids += [i for i, token in enumerate(tokens) if token in _END_TOKENS and i not in ids]
    return tuple(dict.fromkeys(ids))


def _llama_like(metadata: _Metadata) -> dict[str, Any]:
    """The configuration of the llama architecture (Llama, SmolLM2, Mixtral) and of qwen2."""
    hidden_size = metadata.integer("embedding_length")
    num_heads = metadata.integer("attention.head_count")
    config: dict[str, Any] = {
        "model_type": metadata.architecture,
        "hidden_size": hidden_size,
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_hidden_layers": metadata.integer("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata.integer("attention.head_count_kv"),
        "head_dim": _head_dim(metadata, hidden_size, num_heads),
        "max_position_embeddings": metadata.integer("context_length"),
        "rms_norm_eps": metadata.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.real("rope.freq_base"),
        "rope_scaling": _rope_scaling(metadata),
        "hidden_act": "silu",
    }
    if metadata.architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in metadata.header.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in metadata.header.tensors
    if metadata.has("expert_count"):
        if metadata.architecture != "llama":
            raise ConfigError(f"{metadata.header.path} is a qwen2 with experts: not supported")
        config["model_type"] = "mixtral"
        config["num_local_experts"] = metadata.integer("expert_count")
        config["num_experts_per_tok"] = metadata.integer("expert_used_count")
        config["sliding_window"] = None
    return config


def _dbrx(metadata: _Metadata) -> dict[str, Any]:
    """The configuration of the dbrx architecture, nested as published."""
    d_model, n_heads = (
        metadata.integer("embedding_length"),
        metadata.integer("attention.head_count"),
    )
    _head_dim(metadata, d_model, n_heads)
    eps = metadata.real("attention.layer_norm_epsilon")
    if eps != 1e-5:
        raise ConfigError(
            f"dbrx.attention.layer_norm_epsilon in {metadata.header.path} is {eps}; DBRX has 1e-5"
        )
    if _rope_scaling(metadata) is not None:
        raise ConfigError(f"{metadata.header.path} scales the positions of a DBRX: not supported")
    return {
        "model_type": "dbrx",
        "d_model": d_model,
        "n_heads": n_heads,
        "n_layers": metadata.integer("block_count"),
        "max_seq_len": metadata.integer("context_length"),
        "attn_config": {
            "kv_n_heads": metadata.integer("attention.head_count_kv"),
            "clip_qkv": metadata.real("attention.clamp_kqv"),
            "rope_theta": metadata.real("rope.freq_base"),
        },
        "ffn_config": {
            "ffn_hidden_size": metadata.integer("feed_forward_length"),
            "moe_num_experts": metadata.integer("expert_count"),
            "moe_top_k": metadata.integer("expert_used_count"),
            "moe_normalize_expert_weights": 1,
        },
    }


def _head_dim(metadata: _Metadata, hidden_size: int, num_heads: int) -> int:
    """Elements of one head: key_length, or by the format's definition embedding_length over
    head_count. All of it must be rotated."""
    if metadata.has("attention.key_length"):
        head_dim = metadata.integer("attention.key_length")
    elif hidden_size % num_heads == 0:
        head_dim = hidden_size // num_heads
    else:
        raise ConfigError(
            f"{metadata.header.path}: embedding_length {hidden_size} is no multiple of"
            f" attention.head_count {num_heads}"
        )
    for suffix in ("attention.value_length", "rope.dimension_count"):
        if metadata.has(suffix) and metadata.integer(suffix) != head_dim:
            raise ConfigError(
                f"{metadata.architecture}.{suffix} in {metadata.header.path} is"
                f" {metadata.integer(suffix)} but a head has {head_dim}: not supported"
            )
    return head_dim


def _vocab_size(header: GGUFHeader) -> int:
    """Rows of the embedding: what the model's logits cover, padding ids included."""
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ConfigError(f"{header.path} holds no matrix token_embd.weight, so no vocabulary size")
    return embedding.shape[0]


def _rope_scaling(metadata: _Metadata) -> dict[str, Any] | None:
    """config.json's rope_scaling: from rope.scaling.* or from the rope_freqs tensor of Llama 3."""
    if "rope_freqs.weight" in metadata.header.tensors:
        return llama3_rope_scaling(metadata.header)
    if not metadata.has("rope.scaling.type"):
        return None
    kind = metadata.text(f"{metadata.architecture}.rope.scaling.type")
    if kind == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": metadata.real("rope.scaling.factor")}
    if metadata.has("rope.scaling.original_context_length"):
        original = metadata.integer("rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = original
    return scaling


def llama3_rope_scaling(header: GGUFHeader) -> dict[str, Any]:
    """Recover Llama 3's rope_scaling from the frequency divisors that llama.cpp stores instead.

    Llama 3.1, 3.2 and 3.3 share low_freq_factor 1, high_freq_factor 4 and 8192 original positions;
    only the factor differs, and it is the largest divisor.

    Raises:
        ConfigError: the divisors are not those of a Llama 3.
    """
    metadata = _Metadata(header)
    theta = metadata.real("rope.freq_base")
    tensor = header.tensors["rope_freqs.weight"]
    stored = np.fromfile(tensor.file, "<f4", math.prod(tensor.shape), offset=tensor.offset)
    low, high, original = 1.0, 4.0, 8192
    factor = float(stored.max())
    wavelengths = 2 * math.pi * theta ** (np.arange(stored.size) / stored.size)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if not np.allclose(stored, expected, rtol=1e-3):
        raise ConfigError(
            f"rope_freqs.weight in {header.path} holds frequency divisors that are not Llama 3's:"
            " this scaling of positions is not supported"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
