"""The engine's settings as options, declared once for every command that starts an engine."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dropless.engine.config import DType, EngineConfig, Quantization

PANEL = "Engine settings"
Device = Literal["auto", "cpu", "cuda"]
Weights = Literal["checkpoint", "random"]


def _option(kind: Any, metavar: str | None, text: str, *flags: str) -> Any:
    return Annotated[kind, typer.Option(*flags, help=text, metavar=metavar, rich_help_panel=PANEL)]


# Fields of EngineConfig (and one turned round), in the order of the help.
OPTIONS: dict[str, Any] = {
    "dtype": _option(
        DType,
        "TYPE",
        "Activations and cache: float32, bfloat16, or auto: bfloat16 on a GPU, float32 on a CPU.",
    ),
    "quantization": _option(
        Quantization,
        "TYPE",
        "Weights: none, fp16, auto (fp16 on an x86 CPU in float32), or fp8: half the memory, for"
        " GPUs; a CPU computes the same, slowly.",
    ),
    "device": _option(Device, "NAME", "auto, cpu or cuda."),
    "threads": _option(int | None, "N", "CPU threads; default: all cores."),
    "tensor_parallel_size": _option(int, "N", "GPUs to split the model over."),
    "expert_parallel": _option(
        bool,
        None,
        "Split a mixture's experts over the GPUs whole, not each expert's width.",
        "--expert-parallel",
    ),
    "deterministic": _option(
        bool,
        None,
        "The same request with the same seed gets the same answer, to the bit, whatever else runs;"
        " slower.",
        "--deterministic",
    ),
    "max_model_len": _option(
        int | None, "N", "Longest prompt plus answer, tokens; default: the model's own."
    ),
    "max_running_requests": _option(int, "N", "Requests computed together."),
    "max_waiting_requests": _option(int, "N", "Queue length; requests beyond it are refused."),
    "step_token_budget": _option(
        int | None,
        "N",
        "Tokens per step; default: 256 on a CPU, 8192 on a GPU, less where memory is short.",
    ),
    "long_prompt_tokens": _option(
        int, "N", "A prompt with more tokens to compute is long: it must not hold up others."
    ),
    "long_prompt_slowdown": _option(
        float, "S", "Share by which long prompts may slow down requests that generate."
    ),
    "kv_cache_bytes": _option(
        int | None, "N", "Size of the KV cache; default: planned from the memory there is."
    ),
    "memory_fraction": _option(float, "F", "Share of the device's memory that the plan may use."),
    "block_size": _option(int, "N", "Tokens per cache block."),
    "no_prefix_caching": _option(
        bool, None, "Compute equal prompt beginnings anew each time.", "--no-prefix-caching"
    ),
    "tokenizer_path": _option(
        Path | None, "PATH", "Another tokenizer than the model's own.", "--tokenizer"
    ),
    "weights": _option(
        Weights, "KIND", "checkpoint, or random: made up for a config.json, to measure speed."
    ),
    "seed": _option(int, "N", "For random weights.", "--weights-seed"),
}


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the engine's options; it receives those that the user set, by their name in
    `EngineConfig`, as its keyword argument `engine`. Wrong ones raise SettingsError before it
    begins, so that no model is fetched for them."""
    config = EngineConfig(model_path=Path())
    defaults = {name: getattr(config, name, False) for name in OPTIONS}
    own = inspect.signature(command, eval_str=True)
    parameters = [p for p in own.parameters.values() if p.name != "engine"]
    parameters += [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation
        )
        for name, annotation in OPTIONS.items()
    ]

    @functools.wraps(command)
    def with_engine(**arguments: Any) -> None:
        chosen = {name: arguments.pop(name) for name in OPTIONS}
        engine = {name: value for name, value in chosen.items() if value != defaults[name]}
        if engine.pop("no_prefix_caching", False):
            engine["prefix_caching"] = False
        EngineConfig(model_path=Path(), **engine)
        command(**arguments, engine=engine)

    with_engine.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_engine.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_engine
