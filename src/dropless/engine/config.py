"""The engine's settings: few, typed, checked before anything loads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from dropless.engine import long_prompts
from dropless.errors import SettingsError

DType = Literal["auto", "float32", "bfloat16"]
Quantization = Literal["auto", "none", "fp16", "fp8"]

MAX_MEMORY_FRACTION = 0.98


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that shapes an engine. `model_path` is local by now: names and hub ids are
    resolved by `dropless.checkpoints.resolve` before an engine is made.

    Sizes are in tokens unless the name says bytes. None or "auto" means: planned from the machine.
    """

    model_path: Path  # a checkpoint folder, a GGUF file; for weights="random" config.json is enough
    model_id: str = ""  # the name clients use; empty: the path's own name
    tokenizer_path: Path | None = None  # None: the model's own
    weights: Literal["checkpoint", "random"] = "checkpoint"
    dtype: DType = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    quantization: Quantization = "auto"  # auto: fp16 weights on an x86 CPU in float32, else none
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensor_parallel_size: int = 1
    expert_parallel: bool = False  # ranks share experts whole, and not the width of each
    deterministic: bool = False  # a token's bits do not depend on what is computed beside it
    max_model_len: int | None = None  # None: the model's own, cut to what the cache can hold
    max_running_requests: int = 256
    max_waiting_requests: int = 4096
    step_token_budget: int | None = None  # None: 256 on a CPU, 8192 to 2048 on a GPU, by memory
    long_prompt_tokens: int = long_prompts.DEFAULT.tokens  # a prompt of more to compute is long
    long_prompt_slowdown: float = long_prompts.DEFAULT.slowdown  # by such, of those who generate
    block_size: int = 16
    kv_cache_bytes: int | None = None  # None: planned
    memory_fraction: float | None = None  # of what is free; None: 0.95 on a GPU, 0.9 on a CPU
    prefix_caching: bool = True
    seed: int = 0  # for generated weights only; requests carry their own
    threads: int | None = None  # CPU threads; None: all cores given to this process

    def __post_init__(self) -> None:
        _positive("tensor_parallel_size", self.tensor_parallel_size)
        _positive("max_running_requests", self.max_running_requests)
        _positive("max_waiting_requests", self.max_waiting_requests)
        for name in ("max_model_len", "step_token_budget", "kv_cache_bytes", "threads"):
            value = getattr(self, name)
            if value is not None:
                _positive(name, value)
        _positive("long_prompt_tokens", self.long_prompt_tokens)
        if not self.long_prompt_slowdown >= 0.01:
            raise SettingsError(
                f"long_prompt_slowdown is {self.long_prompt_slowdown}; it must be at least 0.01. A"
                " large number lets long prompts go on as fast as they can"
            )
        if self.block_size not in (8, 16, 32, 64, 128):
            raise SettingsError(
                f"block_size is {self.block_size}; use 8, 16, 32, 64 or 128 (16 suits most)"
            )
        fraction = self.memory_fraction
        if fraction is not None and not 0.05 <= fraction <= MAX_MEMORY_FRACTION:
            raise SettingsError(
                f"memory_fraction is {fraction}; it must be between 0.05 and {MAX_MEMORY_FRACTION}"
            )
        if self.quantization == "fp16" and self.device == "cuda":
            raise SettingsError("fp16 weights are a CPU format; use quantization none on a GPU")
        if self.quantization == "fp16" and self.dtype == "bfloat16":
            raise SettingsError(
                "fp16 weights need dtype float32; use quantization none in bfloat16"
            )
        if self.quantization == "fp8" and (self.device, self.dtype) == ("cuda", "float32"):
            raise SettingsError("fp8 weights on a GPU need dtype bfloat16 (or auto), not float32")


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise SettingsError(f"{name} is {value}; it must be at least 1")
