"""The memory plan: what weights, KV cache and a step take, decided before anything loads."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dropless.checkpoints.checkpoint import Checkpoint
from dropless.engine.config import MAX_MEMORY_FRACTION, EngineConfig
from dropless.engine.expert_load import ExpertLoad
from dropless.engine.machine_memory import available_memory
from dropless.engine.out_of_memory import ran_out_of_memory
from dropless.engine.step_graphs import batch_buckets, token_buckets
from dropless.errors import MemoryPlanError, SettingsError
from dropless.layers.weights import WeightFormat
from dropless.models.config import ModelConfig
from dropless.models.registry import parse_config, weight_bytes

_CPU_CACHE = 384 * 2**20  # unless one full context needs more, or the caller says otherwise
_SHORTEST_LEN = 256  # a cache that holds less is of no use
_CPU_TOKEN_BUDGET = 256
GPU_TOKEN_BUDGETS = (8192, 4096, 2048)
FP8_CAPABILITY = (8, 9)  # of GPUs that multiply 8-bit numbers
_LOGIT_COPIES = 4  # the sampler's passes over the logits, float32


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as a plan sees it."""

    name: str
    free_bytes: int
    compute_capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Every setting that "auto" or None left open, and what it all takes.

    Bytes are of one device: of one rank's GPU, or of the machine for all ranks on a CPU.
    """

    device: Literal["cpu", "cuda"]
    dtype: torch.dtype
    quantization: WeightFormat
    threads: int  # CPU threads of each rank
    max_model_len: int
    step_token_budget: int
    num_blocks: int
    weight_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    limit_bytes: int  # what the plan may use

    def describe(self) -> str:
        """A small table, sizes in GiB."""
        dtype = str(self.dtype).removeprefix("torch.")
        cache = f"{self.num_blocks} blocks, contexts up to {self.max_model_len} tokens"
        lines = [
            ("weights", self.weight_bytes, f"{dtype}, quantization {self.quantization}"),
            ("KV cache", self.kv_cache_bytes, cache),
            ("workspace", self.workspace_bytes, f"steps of {self.step_token_budget} tokens"),
        ]
        total = sum(size for _, size, _ in lines)
        lines.append(("in all", total, f"of {_gib(self.limit_bytes)} on {self.device}"))
        return "\n".join(f"{name:<10} {_gib(size):>11}  {note}" for name, size, note in lines)


def plan_memory(
    config: EngineConfig, checkpoint: Checkpoint, gpus: Sequence[Gpu] | None = None
) -> MemoryPlan:
    """Decide what the settings left open, so that it fits into the memory that is free.

    `gpus` are those to plan for, one a rank; None: this machine's, as they are now.

    Raises:
        MemoryPlanError: it does not fit; the message says what would.
        SettingsError: a device or a format that this machine does not have.
        ConfigError: the model's configuration is wrong.
    """
    model = parse_config(checkpoint.config)
    if gpus is None:
        gpus = _gpus_here(config)
    device = _device(config, len(gpus))
    dtype = _dtype(config, device)
    quantization = _quantization(config, device, dtype, gpus)
    ranks = config.tensor_parallel_size
    ranks_here = ranks if device == "cpu" else 1
    if config.expert_parallel and model.num_experts == 1:
        raise SettingsError(f"expert_parallel is for mixtures of experts; {model.family} has none")
    weights = ranks_here * weight_bytes(
        checkpoint,
        dtype=dtype,
        num_ranks=ranks,
        quantization=quantization,
        expert_parallel=config.expert_parallel,
    )
    free = available_memory() if device == "cpu" else min(gpu.free_bytes for gpu in gpus)
    limit = int(free * memory_fraction(config, device))
    wanted_len = _wanted_len(config, model)
    for budget in _budgets(config, device):
        workspace = ranks_here * _workspace(model, config, budget, dtype, device, quantization)
        room = limit - weights - workspace
        if room >= workspace:  # a larger share of the memory would leave few users room
            break
    block_bytes = _block_bytes(model, config, dtype, ranks_here)
    least_cache = block_bytes * _blocks(min(_SHORTEST_LEN, wanted_len), config)
    if room < least_cache:
        raise _too_big(config, model, quantization, weights, workspace, least_cache, limit, device)
    cache = _cache_bytes(config, device, room, block_bytes, wanted_len)
    num_blocks = cache // block_bytes
    max_model_len = min(wanted_len, num_blocks * config.block_size)
    if config.max_model_len is not None and max_model_len < wanted_len:
        raise MemoryPlanError(
            f"max_model_len {wanted_len} needs {_gib(block_bytes * _blocks(wanted_len, config))} of"
            f" KV cache and there are {_gib(cache)}; set max_model_len to {max_model_len} or less"
        )
    return MemoryPlan(
        device=device,
        dtype=dtype,
        quantization=quantization,
        threads=_threads(config, ranks_here),
        max_model_len=max_model_len,
        step_token_budget=budget,
        num_blocks=num_blocks,
        weight_bytes=weights,
        kv_cache_bytes=num_blocks * block_bytes,
        workspace_bytes=workspace,
        limit_bytes=limit,
    )


def _gpus_here(config: EngineConfig) -> list[Gpu]:
    """One a rank, or as many as there are. On a CPU none is asked, for that takes its memory."""
    there = 0 if config.device == "cpu" else torch.cuda.device_count()
    return [_gpu_here(rank) for rank in range(min(there, config.tensor_parallel_size))]


def _gpu_here(rank: int) -> Gpu:
    try:
        free = torch.cuda.mem_get_info(rank)[0]
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        raise MemoryPlanError(
            f"GPU {rank} has no memory left, not even the few hundred MiB that CUDA itself takes;"
            " free some of it (nvidia-smi shows who has it)"
        ) from error
    return Gpu(torch.cuda.get_device_name(rank), free, torch.cuda.get_device_capability(rank))


def _device(config: EngineConfig, num_gpus: int) -> Literal["cpu", "cuda"]:
    if config.device == "cpu" or (config.device == "auto" and num_gpus == 0):
        return "cpu"
    if num_gpus < config.tensor_parallel_size:
        raise SettingsError(
            f"tensor_parallel_size {config.tensor_parallel_size} on cuda needs as many GPUs;"
            f" PyTorch sees {num_gpus}"
        )
    return "cuda"


def _dtype(config: EngineConfig, device: str) -> torch.dtype:
    if config.dtype == "float32" or (config.dtype == "auto" and device == "cpu"):
        return torch.float32
    return torch.bfloat16


def _quantization(
    config: EngineConfig, device: str, dtype: torch.dtype, gpus: Sequence[Gpu]
) -> WeightFormat:
    if config.quantization == "none":
        return "none"
    if config.quantization == "fp8":
        if device == "cuda":
            _check_gpu_fp8(gpus, dtype)
        return "fp8"
    possible = device == "cpu" and dtype == torch.float32
    if config.quantization == "fp16" and not possible:
        name = str(dtype).removeprefix("torch.")
        raise SettingsError(
            f"fp16 weights need a CPU and float32 activations, not {name} on {device};"
            " use quantization none"
        )
    is_fast = platform.machine() in ("x86_64", "AMD64")
    return "fp16" if possible and (is_fast or config.quantization == "fp16") else "none"


def _check_gpu_fp8(gpus: Sequence[Gpu], dtype: torch.dtype) -> None:
    if dtype != torch.bfloat16:
        raise SettingsError("fp8 weights on a GPU need dtype bfloat16 (or auto), not float32")
    for gpu in gpus:
        if gpu.compute_capability < FP8_CAPABILITY:
            major, minor = gpu.compute_capability
            raise SettingsError(
                f"fp8 weights need GPUs that multiply 8-bit numbers (compute capability 8.9: Ada,"
                f" Hopper or newer); {gpu.name} has {major}.{minor}. Use quantization none"
            )


def _threads(config: EngineConfig, ranks_here: int) -> int:
    cores = len(os.sched_getaffinity(0))
    return config.threads or max(1, cores // ranks_here)


def _wanted_len(config: EngineConfig, model: ModelConfig) -> int:
    longest = model.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise SettingsError(
            f"max_model_len is {config.max_model_len}, but the model has {longest} positions;"
            f" set it to {longest} or less"
        )
    return config.max_model_len or longest


def _budgets(config: EngineConfig, device: str) -> tuple[int, ...]:
    """Tokens of a step that come into question, the best first."""
    if config.step_token_budget is not None:
        return (config.step_token_budget,)
    return (_CPU_TOKEN_BUDGET,) if device == "cpu" else GPU_TOKEN_BUDGETS


def _workspace(
    model: ModelConfig,
    config: EngineConfig,
    budget: int,
    dtype: torch.dtype,
    device: str,
    quantization: WeightFormat,
) -> int:
    """What a step of one rank holds at once, from above: activations, choices of experts, and the
    logits of all requests in the sampler. CUDA graphs keep the activations of the largest, which
    all share, its hidden states, and the logits of each batch size; larger steps have their own."""

    def activations(num_tokens: int) -> int:
        return _activation_bytes(model, config, num_tokens, dtype, device, quantization)

    logits_bytes = model.vocab_size * 4
    sampled = min(budget, config.max_running_requests)
    num_bytes = activations(budget) + _LOGIT_COPIES * sampled * logits_bytes
    if model.num_experts > 1:
        most_tokens = max(budget, config.max_running_requests)
        num_bytes += ExpertLoad.num_bytes(model.num_layers, most_tokens, model.top_k)
    if device == "cuda":
        largest = token_buckets(budget)[-1]
        if largest < budget:
            num_bytes += activations(largest)
        num_bytes += largest * model.hidden_size * dtype.itemsize
        num_bytes += sum(batch_buckets(config.max_running_requests)) * logits_bytes
    return num_bytes


def _activation_bytes(
    model: ModelConfig,
    config: EngineConfig,
    num_tokens: int,
    dtype: torch.dtype,
    device: str,
    quantization: WeightFormat,
) -> int:
    """From above, of a step of one rank: the stream and its norm, queries, keys and values and
    their mixture, the feed-forward layer of every expert a token reaches (its rows in the order of
    experts, what comes of them, and that in the order of tokens). With expert parallelism all
    tokens may go to one rank."""
    ranks = config.tensor_parallel_size
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim // ranks
    width = model.ffn_width if config.expert_parallel else model.ffn_width // ranks
    hidden_copies = 3 if model.num_experts > 1 else 1
    ffn = model.top_k * (hidden_copies * model.hidden_size + 3 * width)
    num_bytes = num_tokens * (4 * model.hidden_size + heads + ffn) * dtype.itemsize
    if quantization == "fp8":
        num_bytes += num_tokens * model.top_k * (model.hidden_size + width)  # the rows, in 8 bits
        if device == "cpu":  # the largest matrix in float32
            num_bytes += 4 * model.hidden_size * max(heads, 2 * width)
    return num_bytes


def _blocks(num_tokens: int, config: EngineConfig) -> int:
    return -(-num_tokens // config.block_size)


def _block_bytes(
    model: ModelConfig, config: EngineConfig, dtype: torch.dtype, ranks_here: int
) -> int:
    """Keys and values of one block in all layers, of the ranks that share this memory."""
    kv_heads = model.num_kv_heads // config.tensor_parallel_size * ranks_here
    per_token = 2 * model.num_layers * kv_heads * model.head_dim * dtype.itemsize
    return per_token * config.block_size


def _cache_bytes(
    config: EngineConfig, device: str, room: int, block_bytes: int, wanted_len: int
) -> int:
    if config.kv_cache_bytes is not None:
        if config.kv_cache_bytes < block_bytes:
            raise MemoryPlanError(
                f"kv_cache_bytes is {config.kv_cache_bytes}, less than one block of"
                f" {block_bytes} bytes; give it at least {_SHORTEST_LEN} tokens' worth:"
                f" {block_bytes * _blocks(_SHORTEST_LEN, config)}"
            )
        if config.kv_cache_bytes > room:
            raise MemoryPlanError(
                f"kv_cache_bytes is {_gib(config.kv_cache_bytes)}, but beside weights and"
                f" workspace {_gib(room)} are left; set kv_cache_bytes to {room} or less"
            )
        return config.kv_cache_bytes
    one_context = block_bytes * _blocks(wanted_len, config)
    most = one_context * config.max_running_requests
    if device == "cpu":
        most = min(most, max(_CPU_CACHE, one_context))
    return min(room, most)


def memory_fraction(config: EngineConfig, device: Literal["cpu", "cuda"]) -> float:
    """The share of the free memory that the plan may use. A CPU's is used by others as well."""
    if config.memory_fraction is not None:
        return config.memory_fraction
    return 0.95 if device == "cuda" else 0.9


def _too_big(
    config: EngineConfig,
    model: ModelConfig,
    quantization: WeightFormat,
    weights: int,
    workspace: int,
    least_cache: int,
    limit: int,
    device: Literal["cpu", "cuda"],
) -> MemoryPlanError:
    where = "this machine" if device == "cpu" else "each GPU"
    advice = ["free memory"]
    needed_bytes = weights + workspace + least_cache
    given = memory_fraction(config, device)
    fraction = given * needed_bytes / max(1, limit) + 0.005  # rounded up below
    if given < fraction <= MAX_MEMORY_FRACTION:
        advice.append(f"set memory_fraction to {fraction:.2f}")
    if device == "cuda" and weights + workspace > limit > workspace:
        total = weights * config.tensor_parallel_size
        fewest = -(-total // (limit - workspace))
        heads = model.num_kv_heads
        needed = next((n for n in range(fewest, heads + 1) if heads % n == 0), None)
        if needed is not None:
            advice.append(f"use at least {needed} such GPUs (tensor_parallel_size)")
        if quantization == "none":
            advice.append("set quantization to fp8, which halves the weights")
    return MemoryPlanError(
        f"{config.model_id or config.model_path.name} needs {_gib(weights)} for weights and"
        f" {_gib(workspace)} for a step of tokens, with KV cache on top; {where} has {_gib(limit)}"
        f" for it (memory_fraction {given:g} of what is free). To make it fit,"
        f" {', '.join(advice)}, use a smaller model, or lower step_token_budget and"
        " max_running_requests"
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB"
