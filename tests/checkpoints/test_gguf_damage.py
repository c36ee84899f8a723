"""GGUF files that are cut short, damaged or of another version: an error, never a crash."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropless.checkpoints.open import open_checkpoint
from dropless.errors import CheckpointError
from tests.checkpoints.small_gguf import HIDDEN, WIDTH, llama_metadata, llama_tensors, write_gguf


def read(checkpoint, name, shape, **part) -> torch.Tensor:
    return checkpoint.read(name, shape, dtype=torch.float32, device=torch.device("cpu"), **part)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    metadata = llama_metadata() | {"tokenizer.ggml.tokens": ["a", "b", "<|im_end|>"]}
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return write_gguf(path, metadata, llama_tensors())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_truncated_anywhere_is_a_checkpoint_error(small, tmp_path, data) -> None:
    content = small.read_bytes()
    header = content.index(b"blk.0.ffn_down.weight")
    # The writer pads the end of the file; a cut there loses nothing.
    last = len(content) - 32
    cut = data.draw(st.integers(0, header) | st.integers(0, last))
    (tmp_path / "cut.gguf").write_bytes(content[:cut])
    with pytest.raises(CheckpointError, match=r"truncated|no GGUF file"):
        open_checkpoint(tmp_path / "cut.gguf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_damaged_header_never_crashes(small, tmp_path, data) -> None:
    content = bytearray(small.read_bytes())
    header = content.index(b"blk.0.ffn_down.weight") + 64
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names():
            read(checkpoint, name, (64, 64))


def test_a_cut_file_names_the_tensor(small, tmp_path) -> None:
    (tmp_path / "cut.gguf").write_bytes(small.read_bytes()[:-64])
    with pytest.raises(CheckpointError, match=r"cut.gguf is truncated: tensor blk.0.ffn_down"):
        open_checkpoint(tmp_path / "cut.gguf")


def test_a_file_that_shrinks_after_opening(small, tmp_path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small.read_bytes())
    checkpoint = open_checkpoint(path)
    path.write_bytes(small.read_bytes()[:4096])
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        read(checkpoint, "model.layers.0.mlp.down_proj.weight", (HIDDEN, WIDTH))


def test_other_versions_are_refused(small, tmp_path) -> None:
    content = bytearray(small.read_bytes())
    content[4] = 1
    (tmp_path / "old.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="GGUF version 1"):
        open_checkpoint(tmp_path / "old.gguf")
