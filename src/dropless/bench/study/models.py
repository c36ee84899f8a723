"""The models that are compared, in their published shapes or tiny, with generated weights."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dropless.bench.slice_engine import slice_engine
from dropless.bench.study.progress import say
from dropless.bench.study.settings import Options, Scale
from dropless.checkpoints.catalogue import shapes
from dropless.checkpoints.folder import read_config
from dropless.checkpoints.open import open_checkpoint
from dropless.engine.build import build_engine
from dropless.engine.config import EngineConfig
from dropless.engine.engine import Engine
from dropless.engine.memory import plan_memory

DENSE = "dense-132b"
MODELS = ("dbrx", DENSE, "llama2-70b")
TITLES = {"dbrx": "DBRX", DENSE: "dense 132B", "llama2-70b": "Llama2-70B"}
_BLOCK_SIZE = 16
GROWTH = 512  # tokens by which a sequence may outgrow its request while steps are timed

_TINY_LLAMA = {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
}
_TINY: dict[str, dict[str, Any]] = {
    "dbrx": {"d_model": 64, "n_heads": 8, "n_layers": 2, "vocab_size": 512, "max_seq_len": 1024},
    DENSE: {**_TINY_LLAMA, "num_hidden_layers": 2, "intermediate_size": 1024},
    "llama2-70b": {**_TINY_LLAMA, "num_hidden_layers": 4, "intermediate_size": 256},
}


def config_of(model: str, *, tiny: bool) -> dict[str, Any]:
    """The content of its config.json."""
    config = copy.deepcopy(dict(read_config(shapes()[model])))
    if tiny:
        config |= _TINY[model]
        if "ffn_config" in config:
            config["ffn_config"]["ffn_hidden_size"] = 64
    return config


@dataclass(frozen=True, slots=True)
class Room:
    """What an engine can hold; enough to schedule as it does without it."""

    num_blocks: int
    block_size: int
    max_running_requests: int
    max_model_len: int
    step_token_budget: int


@contextmanager
def engine_of(model: str, options: Options) -> Iterator[tuple[Engine, Room, float]]:
    """An engine with room for all users, or as many of them as memory allows, and for one request
    more; and the seconds it took to start.

    Raises:
        MemoryPlanError: the model does not fit at all.
    """
    scale = options.scale
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = config_of(model, tiny=scale.is_tiny)
        (folder / "config.json").write_text(json.dumps(config))
        opened = (_slice if options.on == "slice" else _whole)(folder, options)
        with opened as (engine, rows, load_seconds):
            room = Room(
                num_blocks=engine.stats().kv_blocks_total,
                block_size=_BLOCK_SIZE,
                max_running_requests=rows,
                max_model_len=_longest(scale),
                step_token_budget=scale.step_token_budget,
            )
            yield engine, room, load_seconds


@contextmanager
def _slice(folder: Path, options: Options) -> Iterator[tuple[Engine, int, float]]:
    scale, rows = options.scale, max(options.users)
    with slice_engine(
        folder,
        options.ranks,
        quantization="none",
        max_model_len=_longest(scale),
        max_running_requests=rows + 1,
        cache_tokens=(rows + 1) * _longest(scale),
        step_token_budget=scale.step_token_budget,
        device=scale.device,
    ) as (engine, load_seconds):
        yield engine, rows, load_seconds


@contextmanager
def _whole(folder: Path, options: Options) -> Iterator[tuple[Engine, int, float]]:
    scale = options.scale
    config = EngineConfig(
        model_path=folder,
        weights="random",
        device=scale.device,
        quantization="none",
        tensor_parallel_size=options.ranks,
        prefix_caching=False,
        max_model_len=_longest(scale),
        max_running_requests=max(options.users),
        step_token_budget=scale.step_token_budget,
        block_size=_BLOCK_SIZE,
        threads=1 if scale.is_tiny else None,
    )
    plan = plan_memory(config, open_checkpoint(folder, "random", config.seed))
    rows = min(max(options.users), rows_that_fit(plan.num_blocks, scale))
    config = msgspec.structs.replace(config, max_running_requests=rows + 1)
    engine, ready = build_engine(config, _say_stages())
    try:
        yield engine, rows, ready.load_seconds
    finally:
        engine.close()


def rows_that_fit(num_blocks: int, scale: Scale) -> int:
    """Requests that a cache holds whole, each with the block that the scheduler leaves it to grow
    into, beside one more."""
    blocks_each = -(-(scale.input_tokens + scale.output_tokens) // _BLOCK_SIZE) + 1
    return max(1, num_blocks // blocks_each - 1)


def _longest(scale: Scale) -> int:
    return scale.input_tokens + scale.output_tokens + GROWTH


def _say_stages() -> Callable[[str, float], None]:
    said: set[str] = set()

    def on_progress(stage: str, _: float) -> None:
        if stage not in said:
            said.add(stage)
            say(f"  {stage}")

    return on_progress
