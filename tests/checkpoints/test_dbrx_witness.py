"""The exported DBRX, run by llama.cpp, against transformers: the export and both layouts are
right, so the file may serve as a second witness of the model."""

from __future__ import annotations

import pytest
import torch

from dropless.checkpoints.writer import write_tiny_dbrx
from tests.checkpoints.dbrx_gguf import export_dbrx_gguf
from tests.checkpoints.llama_cpp_witness import llama_cpp_greedy


def test_llama_cpp_agrees_with_transformers(tmp_path) -> None:
    pytest.importorskip("xllamacpp")
    from transformers import DbrxForCausalLM

    write_tiny_dbrx(tmp_path / "hf", clip_qkv=0.5, moe_num_experts=8, moe_top_k=3)
    path = export_dbrx_gguf(tmp_path / "hf", tmp_path / "m.gguf")
    prompt = [5, 77, 130, 300, 12, 9, 44, 101]
    steps = llama_cpp_greedy(path, prompt, max_tokens=8)
    generated = [step.token_id for step in steps]
    model = DbrxForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        logits = model(torch.tensor([prompt + generated])).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits, dim=-1)
    assert logprobs.argmax(dim=-1).tolist() == generated
    for row, step in zip(logprobs, steps, strict=True):
        for token_id, logprob in step.logprobs.items():
            assert row[token_id].item() == pytest.approx(logprob, abs=1e-4)
