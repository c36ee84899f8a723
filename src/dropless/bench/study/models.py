"""The models that are compared, in their published shapes or tiny, with generated weights."""

from __future__ import annotations

import copy
import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dropless.bench.slice_engine import slice_engine
from dropless.bench.study.options import Options
from dropless.checkpoints.catalogue import shapes
from dropless.checkpoints.folder import read_config
from dropless.engine.build import build_engine
from dropless.engine.config import EngineConfig
from dropless.engine.engine import Engine

MODELS = ("dbrx", "dense-132b", "llama2-70b")
TITLES = {"dbrx": "DBRX", "dense-132b": "dense 132B", "llama2-70b": "Llama2-70B"}

_TINY_LLAMA = {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}
_TINY: dict[str, dict[str, Any]] = {
    "dbrx": {"d_model": 64, "n_heads": 8, "n_layers": 2, "vocab_size": 512, "max_seq_len": 512},
    "dense-132b": {**_TINY_LLAMA, "num_hidden_layers": 2, "intermediate_size": 1024},
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


@contextmanager
def engine_of(
    model: str, options: Options, on_step: Callable[[int], None]
) -> Iterator[tuple[Engine, float]]:
    """An engine with room for all users as far as memory allows, and the seconds it took to start.
    `on_step` is told the tokens of a slice's steps."""
    config = config_of(model, tiny=options.tiny)
    most_users = max(options.users)
    length = options.input_tokens + options.output_tokens
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        opened = (
            slice_engine(
                Path(folder),
                options.ranks,
                quantization="none",
                max_model_len=length,
                max_running_requests=most_users,
                cache_tokens=(most_users + 1) * (length + 16),  # 16: the last block of each
                device=options.device,
                on_step=on_step,
            )
            if options.on == "slice"
            else _whole_engine(Path(folder), length, options)
        )
        with opened as (engine, load_seconds):
            yield engine, load_seconds
    del opened, engine
    gc.collect()  # the next model needs the memory
    if options.device == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _whole_engine(folder: Path, length: int, options: Options) -> Iterator[tuple[Engine, float]]:
    config = EngineConfig(
        model_path=folder,
        weights="random",
        device=options.device,
        quantization="none",
        tensor_parallel_size=options.ranks,
        prefix_caching=False,
        max_model_len=length,
        max_running_requests=max(options.users),
        memory_fraction=options.memory_fraction,
        threads=1 if options.tiny else None,
    )
    engine, ready = build_engine(config, lambda *_: None)
    try:
        yield engine, ready.load_seconds
    finally:
        engine.close()
