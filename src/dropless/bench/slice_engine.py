"""One rank's part of a model, alone: what each GPU of several computes, measured on one of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from dropless.checkpoints.open import open_checkpoint
from dropless.engine import long_prompts
from dropless.engine.config import EngineConfig
from dropless.engine.constraints import Constraints
from dropless.engine.engine import Engine
from dropless.engine.executor import Executor
from dropless.engine.load import load_runner
from dropless.engine.long_prompts import LongPrompts
from dropless.engine.machine_memory import available_memory
from dropless.engine.memory import MemoryPlan
from dropless.layers.weights import WeightFormat
from dropless.models.registry import parse_config, weight_bytes
from dropless.parallel.group import Group


@contextmanager
def slice_engine(
    model_path: Path,
    ranks: int,
    *,
    quantization: WeightFormat,
    max_model_len: int,
    max_running_requests: int,
    cache_tokens: int,
    step_token_budget: int = 8192,
    deterministic: bool = False,
    long_prompts: LongPrompts = long_prompts.DEFAULT,
    device: Literal["cpu", "cuda"] = "cuda",
) -> Iterator[tuple[Engine, float]]:
    """The engine of rank 0 of `ranks` that exchange nothing, with generated weights, and the
    seconds it took to start. In bfloat16 on a GPU, float32 on a CPU.

    Its vocabulary is the rank's part: prompts must keep to ids below vocab_size / ranks.
    """
    started = time.monotonic()
    config = EngineConfig(
        model_path=model_path,
        weights="random",
        device=device,
        deterministic=deterministic,
        max_running_requests=max_running_requests,
    )
    checkpoint = open_checkpoint(config.model_path, config.weights, config.seed)
    model = parse_config(checkpoint.config)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    num_blocks = cache_tokens // config.block_size
    heads = model.num_kv_heads // ranks
    token_bytes = 2 * model.num_layers * heads * model.head_dim * dtype.itemsize
    plan = MemoryPlan(
        device=device,
        dtype=dtype,
        quantization=quantization,
        threads=1,
        max_model_len=max_model_len,
        step_token_budget=step_token_budget,
        num_blocks=num_blocks,
        weight_bytes=weight_bytes(
            checkpoint, dtype=dtype, num_ranks=ranks, quantization=quantization
        ),
        kv_cache_bytes=num_blocks * config.block_size * token_bytes,
        workspace_bytes=0,
        limit_bytes=torch.cuda.mem_get_info()[0] if device == "cuda" else available_memory(),
    )
    constraints = Constraints(None, model.vocab_size // ranks, ())
    runner = load_runner(config, checkpoint, plan, Group(0, ranks), constraints, lambda *_: None)
    engine = Engine(
        Executor(runner),
        constraints,
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_model_len=max_model_len,
        max_running_requests=max_running_requests,
        max_waiting_requests=max_running_requests,
        step_token_budget=plan.step_token_budget,
        prefix_caching=False,
        long_prompts=long_prompts,
    )
    yield engine, time.monotonic() - started
