"""The memory plan: what fits, and what a refusal advises."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.resolve import resolve
from dropless.checkpoints.writer import tiny_dbrx_config
from dropless.engine.config import EngineConfig
from dropless.engine.memory import MemoryPlan, plan_memory
from dropless.errors import MemoryPlanError, SettingsError

GIB = 2**30


def plan(name: str = "dbrx", **settings: Any) -> MemoryPlan:
    path = resolve(name, allow_shapes=True)
    config = EngineConfig(model_path=path, model_id=name, **settings)
    return plan_memory(config, open_checkpoint(path, "random", 0))


@pytest.fixture(autouse=True)
def eight_h200(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What PyTorch says of GPUs with 139 GiB free."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (139 * GIB, 140 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    return monkeypatch


def test_dbrx_in_8_bits_fits_on_one_h200() -> None:
    found = plan(quantization="fp8", memory_fraction=0.96)
    outside = 2 * (2 * 100352 * 6144 + 40 * (16 + 2) * 6144 + 6144)
    rows = 40 * (8192 + 6144 + 16 * (2 * 10752 + 6144))
    eight_bits = 40 * 6144 * (8192 + 6144 + 16 * 3 * 10752)
    assert found.weight_bytes == outside + eight_bits + 4 * rows
    assert found.quantization == "fp8"
    assert found.max_model_len == 32768
    used = found.weight_bytes + found.workspace_bytes + found.kv_cache_bytes
    assert used <= found.limit_bytes == int(0.96 * 139 * GIB)


def test_dbrx_fits_by_default_on_one_h200_in_8_bits_and_on_two_in_16() -> None:
    for found in (plan(quantization="fp8"), plan(tensor_parallel_size=2)):
        assert found.limit_bytes == int(0.95 * 139 * GIB)
        assert found.max_model_len >= 16384


def test_a_refusal_names_what_would_fit() -> None:
    with pytest.raises(MemoryPlanError, match=r"at least 2 such GPUs.*fp8"):
        plan(quantization="none")
    with pytest.raises(MemoryPlanError, match="at least 4 such GPUs"):  # 3 cannot share 8 heads
        plan(quantization="none", memory_fraction=0.8)
    with pytest.raises(MemoryPlanError, match=r"set memory_fraction to 0\.\d\d") as refused:
        plan(quantization="fp8", memory_fraction=0.5)
    advised = re.search(r"set memory_fraction to (0\.\d\d)", str(refused.value))
    assert advised is not None
    assert plan(quantization="fp8", memory_fraction=float(advised[1])).num_blocks >= 16


def test_expert_parallelism_plans_for_all_tokens_on_one_rank() -> None:
    sizes = {"tensor_parallel_size": 8, "max_model_len": 4096}
    by_width, by_expert = plan(**sizes), plan(**sizes, expert_parallel=True)
    assert by_width.weight_bytes == by_expert.weight_bytes
    assert by_expert.workspace_bytes > by_width.workspace_bytes
    with pytest.raises(SettingsError, match="llama has none"):
        plan("llama2-70b", **sizes, expert_parallel=True)


def test_experts_that_do_not_divide_evenly_are_refused(tmp_path: Path) -> None:
    config = tiny_dbrx_config(n_heads=8, kv_n_heads=4, moe_num_experts=6)
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path, "random", 0)
    settings = {"model_path": tmp_path, "tensor_parallel_size": 4}
    assert plan_memory(EngineConfig(**settings), checkpoint).num_blocks > 0
    with pytest.raises(SettingsError, match=r"experts: 6 cannot be shared.*to 1 or 2 or 3"):
        plan_memory(EngineConfig(**settings, expert_parallel=True), checkpoint)


def test_fp8_needs_a_gpu_that_has_it_or_a_cpu(eight_h200: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="bfloat16"):
        EngineConfig(model_path=Path(), quantization="fp8", device="cuda", dtype="float32")
    with pytest.raises(SettingsError, match="bfloat16"):
        plan(quantization="fp8", dtype="float32")
    eight_h200.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(SettingsError, match=r"8\.9.*A GPU has 8\.0"):
        plan(quantization="fp8")
    on_cpu = plan("smollm2-135m", quantization="fp8", device="cpu", max_model_len=512)
    assert (on_cpu.quantization, on_cpu.dtype) == ("fp8", torch.float32)
