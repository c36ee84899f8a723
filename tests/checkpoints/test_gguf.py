"""GGUF files: names, layouts, block formats, configuration."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.writer import dbrx_tensor_shapes, write_tiny_dbrx
from dropless.errors import CheckpointError, ConfigError
from tests.checkpoints.dbrx_gguf import export_dbrx_gguf
from tests.checkpoints.small_gguf import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    VOCAB,
    WIDTH,
    llama_metadata,
    llama_tensors,
    random,
    write_gguf,
)

CPU = torch.device("cpu")
F32 = torch.float32
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def read(checkpoint, name, shape, **part) -> torch.Tensor:
    return checkpoint.read(name, shape, dtype=F32, device=CPU, **part)


def rotate_neighbours(x: np.ndarray, theta: float, position: int) -> np.ndarray:
    """llama.cpp's rotation of a llama: pairs (2j, 2j + 1)."""
    angles = position * theta ** (-np.arange(0, x.size, 2) / x.size)
    even, odd, out = x[0::2], x[1::2], np.empty_like(x)
    out[0::2] = even * np.cos(angles) - odd * np.sin(angles)
    out[1::2] = even * np.sin(angles) + odd * np.cos(angles)
    return out


def rotate_halves(x: np.ndarray, theta: float, position: int) -> np.ndarray:
    """The published layout's rotation: pairs (j, j + d/2)."""
    angles = position * theta ** (-np.arange(0, x.size, 2) / x.size)
    first, second = x[: x.size // 2], x[x.size // 2 :]
    return np.concatenate(
        [
            first * np.cos(angles) - second * np.sin(angles),
            first * np.sin(angles) + second * np.cos(angles),
        ]
    )


def test_undone_reordering_gives_the_same_attention_scores(tmp_path) -> None:
    tensors = llama_tensors()
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", llama_metadata(), tensors))
    q = read(checkpoint, Q_PROJ, (64, 64)).numpy()
    k = read(checkpoint, Q_PROJ.replace("q_proj", "k_proj"), (32, 64)).numpy()
    x, y = random(HIDDEN), random(HIDDEN) + 1.0
    theta, head = 10000.0, 1
    rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    stored_q, stored_k = tensors["blk.0.attn_q.weight"], tensors["blk.0.attn_k.weight"]
    theirs = rotate_neighbours(stored_q[rows] @ x, theta, 9) @ rotate_neighbours(
        stored_k[rows] @ y, theta, 4
    )
    ours = rotate_halves(q[rows] @ x, theta, 9) @ rotate_halves(k[rows] @ y, theta, 4)
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_slices_across_heads_are_slices_of_the_whole(tmp_path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", llama_metadata(), llama_tensors()))
    whole = read(checkpoint, Q_PROJ, (64, 64))
    for start, length in ((0, 16), (5, 3), (10, 40), (16, 32), (63, 1), (7, 0)):
        part = read(checkpoint, Q_PROJ, (64, 64), dim=0, start=start, length=length)
        assert torch.equal(part, whole[start : start + length])
        part = read(checkpoint, Q_PROJ, (64, 64), dim=1, start=start, length=length)
        assert torch.equal(part, whole[:, start : start + length])


def test_llama_configuration(tmp_path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama_metadata(), llama_tensors())
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
    }
    assert not checkpoint.quantized
    assert not checkpoint.has("lm_head.weight")


def test_untied_output_and_end_tokens(tmp_path) -> None:
    tensors = llama_tensors() | {"output.weight": random(VOCAB, HIDDEN)}
    metadata = llama_metadata() | {
        "tokenizer.ggml.tokens": ["a", "<|endoftext|>", "b", "<|im_end|>"],
        "tokenizer.ggml.eos_token_id": 3,
    }
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    assert checkpoint.config["tie_word_embeddings"] is False
    assert checkpoint.eos_token_ids == (3, 1)
    assert np.array_equal(
        read(checkpoint, "lm_head.weight", (VOCAB, HIDDEN)), tensors["output.weight"]
    )


def test_qwen2_keeps_rows_in_order_and_has_biases(tmp_path) -> None:
    tensors = llama_tensors() | {"blk.0.attn_q.bias": random(64)}
    path = write_gguf(tmp_path / "m.gguf", llama_metadata(), tensors, "qwen2")
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["model_type"] == "qwen2"
    assert np.array_equal(read(checkpoint, Q_PROJ, (64, 64)), tensors["blk.0.attn_q.weight"])
    bias = read(checkpoint, "model.layers.0.self_attn.q_proj.bias", (64,), dim=0, start=8, length=9)
    assert np.array_equal(bias, tensors["blk.0.attn_q.bias"][8:17])


def test_llama_bias_is_reordered_like_its_matrix(tmp_path) -> None:
    tensors = llama_tensors()
    tensors["blk.0.attn_q.bias"] = tensors["blk.0.attn_q.weight"][:, 0].copy()
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", llama_metadata(), tensors))
    assert checkpoint.config["attention_bias"] is True
    bias = read(checkpoint, "model.layers.0.self_attn.q_proj.bias", (64,))
    assert torch.equal(bias, read(checkpoint, Q_PROJ, (64, 64))[:, 0])


def test_mixtral_experts(tmp_path) -> None:
    tensors = {k: v for k, v in llama_tensors().items() if "ffn_" not in k or "norm" in k}
    tensors |= {
        "blk.0.ffn_gate_inp.weight": random(4, HIDDEN),
        "blk.0.ffn_gate_exps.weight": random(4, WIDTH, HIDDEN),
        "blk.0.ffn_up_exps.weight": random(4, WIDTH, HIDDEN) + 1,
        "blk.0.ffn_down_exps.weight": random(4, HIDDEN, WIDTH),
    }
    metadata = llama_metadata() | {"expert_count": 4, "expert_used_count": 2}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    assert checkpoint.config["model_type"] == "mixtral"
    assert checkpoint.config["num_local_experts"] == 4
    assert checkpoint.config["num_experts_per_tok"] == 2
    moe = "model.layers.0.block_sparse_moe"
    for expert in range(4):
        for matrix, part, shape in (
            ("w1", "gate", (WIDTH, HIDDEN)),
            ("w2", "down", (HIDDEN, WIDTH)),
            ("w3", "up", (WIDTH, HIDDEN)),
        ):
            got = read(checkpoint, f"{moe}.experts.{expert}.{matrix}.weight", shape)
            assert np.array_equal(got, tensors[f"blk.0.ffn_{part}_exps.weight"][expert])
    gate = read(checkpoint, f"{moe}.gate.weight", (4, HIDDEN))
    assert np.array_equal(gate, tensors["blk.0.ffn_gate_inp.weight"])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "BF16", "F16"])
def test_block_formats(tmp_path, kind) -> None:
    quantization = gguf.GGMLQuantizationType[kind]
    names = ["token_embd.weight", "blk.0.ffn_down.weight"]
    path = write_gguf(
        tmp_path / "m.gguf",
        llama_metadata(),
        llama_tensors(),
        kinds=dict.fromkeys(names, quantization),
    )
    checkpoint = open_checkpoint(path)
    assert checkpoint.quantized == kind.startswith("Q")
    original = llama_tensors()["blk.0.ffn_down.weight"]
    expected = torch.from_numpy(
        gguf.dequantize(gguf.quantize(original, quantization), quantization).copy()
    )
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(read(checkpoint, name, (HIDDEN, WIDTH)), expected)
    for dim, start, length in ((0, 3, 20), (1, 32, 32), (1, 30, 40), (1, 95, 1)):
        part = read(checkpoint, name, (HIDDEN, WIDTH), dim=dim, start=start, length=length)
        assert torch.equal(part, expected.narrow(dim, start, length))


@pytest.mark.parametrize("key", sorted(llama_metadata()))
def test_a_missing_key_is_named(tmp_path, key) -> None:
    metadata = llama_metadata()
    del metadata[key]
    path = write_gguf(tmp_path / "m.gguf", metadata, llama_tensors())
    with pytest.raises(ConfigError, match=rf"lacks the metadata llama\.{key}"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.head_count": 0}, r"attention\.head_count in .* is 0"),
        ({"attention.head_count": 5}, "no multiple of attention.head_count 5"),
        ({"attention.head_count": [4, 4]}, "not a positive integer"),
        ({"rope.freq_base": -1.0}, "not a positive number"),
        ({"rope.dimension_count": 8}, r"rope\.dimension_count in .* is 8 but a head has 16"),
        ({"attention.value_length": 8}, r"value_length in .* is 8 but a head has 16"),
        ({"rope.scaling.type": "linear"}, r"lacks the metadata llama\.rope\.scaling\.factor"),
        ({"expert_count": 4}, r"lacks the metadata llama\.expert_used_count"),
    ],
)
def test_contradictions_are_named(tmp_path, changes, message) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama_metadata() | changes, llama_tensors())
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(path)


def test_unknown_architecture_and_unknown_tensor(tmp_path) -> None:
    path = write_gguf(tmp_path / "a.gguf", llama_metadata(), llama_tensors(), "gpt2")
    with pytest.raises(ConfigError, match="architecture 'gpt2'; supported are llama, qwen2, dbrx"):
        open_checkpoint(path)
    tensors = llama_tensors() | {"blk.0.attn_q_norm.weight": random(HEAD_DIM)}
    path = write_gguf(tmp_path / "b.gguf", llama_metadata(), tensors)
    with pytest.raises(CheckpointError, match=r"holds the tensor blk.0.attn_q_norm.weight"):
        open_checkpoint(path)


@pytest.mark.parametrize("key", ["attention.head_count_kv", "attention.key_length"])
def test_rows_that_contradict_the_heads(tmp_path, key) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama_metadata() | {key: 64}, llama_tensors())
    with pytest.raises(CheckpointError, match=r"rows, the metadata says .* heads of"):
        open_checkpoint(path)


def test_linear_rope_scaling(tmp_path) -> None:
    changes = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "m.gguf", llama_metadata() | changes, llama_tensors())
    assert open_checkpoint(path).config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_llama3_rope_scaling_is_recovered(tmp_path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    metadata = llama_metadata() | {"attention.key_length": 128}
    config = LlamaConfig(
        head_dim=128, rope_theta=500000.0, rope_scaling=scaling, max_position_embeddings=131072
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, CPU)
    plain, _ = ROPE_INIT_FUNCTIONS["default"](config, CPU)
    tensors = llama_tensors() | {
        "rope_freqs.weight": (plain / scaled).numpy(),
        "blk.0.attn_q.weight": random(HEADS * 128, HIDDEN),
        "blk.0.attn_k.weight": random(KV_HEADS * 128, HIDDEN),
    }
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    assert checkpoint.config["rope_scaling"] == scaling
    tensors["rope_freqs.weight"][40] *= 1.5
    path = write_gguf(tmp_path / "odd.gguf", metadata, tensors)
    with pytest.raises(ConfigError, match="not Llama 3's"):
        open_checkpoint(path)


def test_dbrx_is_read_back_as_it_was_published(tmp_path) -> None:
    config = write_tiny_dbrx(tmp_path / "hf", vocab_size=160, n_layers=1)
    published = open_checkpoint(tmp_path / "hf")
    exported = open_checkpoint(export_dbrx_gguf(tmp_path / "hf", tmp_path / "m.gguf"))
    for key in ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size"):
        assert exported.config[key] == config[key]
    assert exported.config["attn_config"] == config["attn_config"]
    assert exported.config["ffn_config"] == config["ffn_config"] | {
        "moe_normalize_expert_weights": 1
    }
    assert sorted(exported.names()) == sorted(published.names())
    for name, shape in dbrx_tensor_shapes(config).items():
        assert torch.equal(read(exported, name, shape), read(published, name, shape))
        if len(shape) == 1:
            continue
        views = [shape, (4, 96, 64)] if ".experts." in name else [shape]
        for view in views:
            for dim in range(len(view)):
                part = {"dim": dim, "start": 1, "length": view[dim] - 2}
                assert torch.equal(
                    read(exported, name, view, **part), read(published, name, view, **part)
                )


def test_split_files_are_one_checkpoint(tmp_path) -> None:
    write_gguf(tmp_path / "m.gguf", llama_metadata(), llama_tensors(), split_max_tensors=4)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 3
    for part in parts:
        assert len(open_checkpoint(part).names()) == 11
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"missing are m-00002-of-00003\.gguf"):
        open_checkpoint(parts[0])
    with pytest.raises(CheckpointError, match="original names"):
        open_checkpoint(parts[0].rename(tmp_path / "renamed.gguf"))
