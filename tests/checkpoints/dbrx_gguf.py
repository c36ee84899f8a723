"""A DBRX checkpoint in the published layout as a GGUF file that llama.cpp runs."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch

from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.writer import dbrx_tensor_shapes

_NAMES = {
    "norm_attn_norm.norm_1.weight": "attn_norm.weight",
    "norm_attn_norm.attn.Wqkv.weight": "attn_qkv.weight",
    "norm_attn_norm.attn.out_proj.weight": "attn_output.weight",
    "norm_attn_norm.norm_2.weight": "attn_output_norm.weight",
    "ffn.router.layer.weight": "ffn_gate_inp.weight",
    "ffn.experts.mlp.w1": "ffn_gate_exps.weight",
    "ffn.experts.mlp.v1": "ffn_up_exps.weight",
    "ffn.experts.mlp.w2": "ffn_down_exps.weight",
}
_TOP_LEVEL = {
    "transformer.wte.weight": "token_embd.weight",
    "transformer.norm_f.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def export_dbrx_gguf(folder: Path, gguf_path: Path) -> Path:
    """Write the (tiny) DBRX checkpoint in `folder` as a float32 GGUF file; returns `gguf_path`.

    llama.cpp wants the experts as three-dimensional tensors, w2 transposed to [experts, hidden,
    width]. The vocabulary is made up: the ASCII bytes of a GPT-2 tokenizer, fillers, and one end
    token (the last id); it needs at least 129 ids. Prompt llama.cpp with token ids.
    """
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    writer = gguf.GGUFWriter(gguf_path, "dbrx")
    _write_metadata(writer, dict(config))
    experts, width = (
        config["ffn_config"]["moe_num_experts"],
        config["ffn_config"]["ffn_hidden_size"],
    )
    for name, shape in dbrx_tensor_shapes(config).items():
        tensor = checkpoint.read(name, shape, dtype=torch.float32, device=torch.device("cpu"))
        if ".experts.mlp." in name:
            tensor = tensor.view(experts, width, -1)
        if name.endswith(".w2"):
            tensor = tensor.transpose(1, 2).contiguous()
        writer.add_tensor(_gguf_name(name), tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf_path


def _gguf_name(name: str) -> str:
    if name in _TOP_LEVEL:
        return _TOP_LEVEL[name]
    layer, rest = name.removeprefix("transformer.blocks.").split(".", 1)
    return f"blk.{layer}.{_NAMES[rest]}"


def _write_metadata(writer: gguf.GGUFWriter, config: dict) -> None:
    attention, ffn = config["attn_config"], config["ffn_config"]
    writer.add_block_count(config["n_layers"])
    writer.add_context_length(config["max_seq_len"])
    writer.add_embedding_length(config["d_model"])
    writer.add_feed_forward_length(ffn["ffn_hidden_size"])
    writer.add_head_count(config["n_heads"])
    writer.add_head_count_kv(attention["kv_n_heads"])
    writer.add_rope_freq_base(float(attention["rope_theta"]))
    writer.add_clamp_kqv(float(attention["clip_qkv"]))
    writer.add_expert_count(ffn["moe_num_experts"])
    writer.add_expert_used_count(ffn["moe_top_k"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokens = _tokens(config["vocab_size"])
    types = [gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("dbrx")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{tokens[ord('a')]} {tokens[ord('b')]}"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)


def _tokens(vocab_size: int) -> list[str]:
    """GPT-2's printable stand-ins for the ASCII bytes, fillers, an end token.

    No byte above 127: llama.cpp reports the tokens that share a character as one.
    """
    if vocab_size < 129:
        raise ValueError(f"vocab_size is {vocab_size}; 128 bytes and an end token need 129")
    spare = iter(range(256, 512))
    stand_ins = [chr(byte if 33 <= byte <= 126 else next(spare)) for byte in range(128)]
    fillers = [f"filler{i}" for i in range(128, vocab_size - 1)]
    return [*stand_ins, *fillers, "<|endoftext|>"]
