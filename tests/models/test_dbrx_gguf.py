"""A second witness of DBRX: llama.cpp on the same weights, which we read from the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.writer import write_tiny_dbrx
from dropless.models.decoder import CausalLM
from dropless.models.registry import load_model
from tests.checkpoints.dbrx_gguf import export_dbrx_gguf
from tests.checkpoints.llama_cpp_witness import llama_cpp_greedy
from tests.models.paged_run import PagedRun, PagedSequence, full_pass

PROMPT = [5, 77, 130, 300, 12, 9, 44, 101]


def load(path: Path) -> CausalLM:
    return load_model(open_checkpoint(path), dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize(
    "shape",
    [
        {"clip_qkv": 0.5, "moe_num_experts": 8, "moe_top_k": 3},
        {"n_heads": 8, "kv_n_heads": 2, "moe_num_experts": 16, "moe_top_k": 4, "n_layers": 3},
    ],
    ids=["clip-bites", "16-experts-top-4"],
)
def test_llama_cpp_is_a_second_witness(shape: dict[str, float], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    write_tiny_dbrx(tmp_path / "hf", **shape)
    path = export_dbrx_gguf(tmp_path / "hf", tmp_path / "m.gguf")
    model = load(path)
    run, sequence = PagedRun(model), PagedSequence(list(PROMPT))
    logits = run.step([(sequence, len(PROMPT))])[0]
    for step in llama_cpp_greedy(path, PROMPT, max_tokens=12):
        logprobs = torch.log_softmax(logits[-1], dim=-1)
        assert logprobs.argmax().item() == step.token_id
        assert len(step.logprobs) == 20
        for token_id, logprob in step.logprobs.items():
            assert logprobs[token_id].item() == pytest.approx(logprob, abs=1e-3)
        sequence.token_ids.append(step.token_id)
        logits = run.step([(sequence, 1)])[0]


def test_both_files_hold_the_same_model(tmp_path: Path) -> None:
    write_tiny_dbrx(tmp_path / "hf", clip_qkv=0.5, moe_num_experts=8, moe_top_k=3)
    path = export_dbrx_gguf(tmp_path / "hf", tmp_path / "m.gguf")
    assert torch.equal(full_pass(load(path), PROMPT), full_pass(load(tmp_path / "hf"), PROMPT))
