"""A NaN in the weights, as a user meets it: the start fails and says which tensor holds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dropless import LLM
from dropless.checkpoints.dry_run import DryRun
from dropless.checkpoints.generated import GeneratedWeights
from dropless.checkpoints.writer import write_safetensors_checkpoint
from dropless.errors import CheckpointError
from dropless.models.registry import load_model
from tests.checkpoints.small_gguf import HIDDEN, llama_metadata, llama_tensors, random, write_gguf
from tests.server.tiny_model import CONFIG, write_tiny_model

CPU = torch.device("cpu")
DOWN = "model.layers.1.mlp.down_proj.weight"  # [64, 128]: rank 1 of two has the last 64 columns


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A servable model of bfloat16 weights; in the last column of `DOWN` is one NaN."""
    write_tiny_model(tmp_path)
    made = GeneratedWeights(tmp_path)
    shapes = DryRun(made)
    load_model(shapes, dtype=torch.float32, device=torch.device("meta"))
    tensors = {
        read.name: made.read(read.name, read.shape, dtype=torch.bfloat16, device=CPU)
        for read in shapes.reads
    }
    tensors[DOWN][40, 127] = float("nan")
    write_safetensors_checkpoint(tmp_path, CONFIG, tensors)
    return tmp_path


def test_serve_names_it_and_ends_all_ranks(broken: Path) -> None:
    options = {"port": 0, "device": "cpu", "threads": 1, "tensor-parallel-size": 2}
    arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "dropless.cli.main", "serve", str(broken), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert f"tensor {DOWN} of {broken} holds NaN" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_in_a_gguf_file(tmp_path: Path, dtype: type[np.floating[Any]]) -> None:
    write_tiny_model(tmp_path)
    up, embedding = "blk.0.ffn_up.weight", "token_embd.weight"
    tensors = llama_tensors() | {embedding: random(CONFIG["vocab_size"], HIDDEN)}
    tensors[up] = tensors[up].astype(dtype)
    tensors[up][17, 5] = np.nan
    path = write_gguf(tmp_path / "m.gguf", llama_metadata(), tensors)
    named = r"tensor model\.layers\.0\.mlp\.up_proj\.weight of .*m\.gguf holds NaN"
    with pytest.raises(CheckpointError, match=named):
        LLM(path, tokenizer_path=tmp_path, device="cpu", threads=1)
