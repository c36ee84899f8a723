"""One rank's runner: its part of the weights and its KV cache."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from dropless.checkpoints.checkpoint import Checkpoint
from dropless.checkpoints.model_cache import cache_root
from dropless.engine.config import EngineConfig
from dropless.engine.constraints import Constraints
from dropless.engine.huge_pages import use_huge_pages
from dropless.engine.memory import MemoryPlan
from dropless.engine.runner import Runner
from dropless.engine.warm_up import warm_up
from dropless.models.registry import load_model
from dropless.parallel.group import Group


def load_runner(
    config: EngineConfig,
    checkpoint: Checkpoint,
    plan: MemoryPlan,
    group: Group,
    constraints: Constraints,
    progress: Callable[[str, float], None],
) -> Runner:
    """Load what rank `group.rank` holds, on its device.

    Raises:
        CheckpointError: the weights are missing, damaged or do not fit the configuration.
        SettingsError: the model does not divide evenly over the ranks.
    """
    torch.set_num_threads(1)  # unpacking is many small copies, which more threads slow down
    device = torch.device("cpu" if plan.device == "cpu" else f"cuda:{group.rank}")
    model = load_model(
        checkpoint,
        dtype=plan.dtype,
        device=device,
        group=group,
        quantization=plan.quantization,
        expert_parallel=config.expert_parallel,
        batch_invariant=config.deterministic,
        on_read=lambda share: progress("loading weights", share),
    )
    if plan.device == "cuda":
        torch.cuda.empty_cache()  # leftovers of quantising, of sizes that nothing asks for again
    heads = group.slice_of(model.config.num_kv_heads, "key and value heads")[1]
    spare_blocks = 1 if plan.device == "cuda" else 0  # for what pads a batch in a graph
    shape = (plan.num_blocks + spare_blocks, config.block_size, heads, model.config.head_dim)
    # Zeros, not whatever lies in memory: a NaN in an unused slot would spread through products.
    kv_caches = [
        (
            torch.zeros(shape, dtype=plan.dtype, device=device),
            torch.zeros(shape, dtype=plan.dtype, device=device),
        )
        for _ in range(model.config.num_layers)
    ]
    if plan.device == "cpu":
        threading.Thread(target=use_huge_pages, name="huge-pages", daemon=True).start()
    torch.set_num_threads(plan.threads)
    runner = Runner(
        model,
        kv_caches,
        device=device,
        group=group,
        max_rows=config.max_running_requests,
        max_model_len=plan.max_model_len,
        constraints=constraints,
    )
    if plan.device == "cuda":
        warm_up(
            model,
            kv_caches,
            group,
            device=device,
            spare_block=plan.num_blocks,
            max_rows=config.max_running_requests,
            max_model_len=plan.max_model_len,
            step_token_budget=plan.step_token_budget,
            cache_folder=cache_root() / "tiles",
            progress=progress,
        )
    if group.rank == 0:
        runner.watch_experts(max(plan.step_token_budget, config.max_running_requests))
    if plan.device == "cuda":
        runner.capture_graphs(
            plan.num_blocks,
            plan.step_token_budget,
            lambda done: progress("capturing CUDA graphs", done),
        )
    return runner
