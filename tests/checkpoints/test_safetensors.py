"""Model folders: slices, dtypes, and every way a folder can be broken."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.writer import (
    dbrx_tensor_shapes,
    tiny_dbrx_config,
    write_safetensors_checkpoint,
    write_tiny_dbrx,
)
from dropless.errors import CheckpointError, ConfigError

CPU = torch.device("cpu")
F32 = torch.float32
W2 = "transformer.blocks.1.ffn.experts.mlp.w2"


@pytest.fixture
def dbrx(tmp_path: Path) -> Path:
    write_tiny_dbrx(tmp_path / "dbrx", shards=3)
    return tmp_path / "dbrx"


def test_transformers_reads_what_the_writer_wrote(dbrx) -> None:
    from transformers import DbrxForCausalLM

    model = DbrxForCausalLM.from_pretrained(dbrx)
    checkpoint = open_checkpoint(dbrx)
    state = model.state_dict()
    assert set(checkpoint.names()) == set(state)
    for name, tensor in state.items():
        assert torch.equal(
            checkpoint.read(name, tuple(tensor.shape), dtype=F32, device=CPU), tensor
        )


def test_the_published_model_has_323_tensors_and_131_6_billion_elements() -> None:
    config = json.loads(
        (Path(__file__).parents[2] / "src/dropless/checkpoints/shapes/dbrx/config.json").read_text()
    )
    shapes = dbrx_tensor_shapes(config)
    assert len(shapes) == 323
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 131_596_523_520


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_hold_everything_once(tmp_path, shards) -> None:
    write_tiny_dbrx(tmp_path, shards=shards)
    checkpoint = open_checkpoint(tmp_path)
    assert sorted(checkpoint.names()) == sorted(dbrx_tensor_shapes(tiny_dbrx_config()))
    assert len(list(tmp_path.glob("*.safetensors"))) == shards
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards > 1)


def test_slices_of_experts(dbrx) -> None:
    checkpoint = open_checkpoint(dbrx)
    whole = checkpoint.read(W2, (4 * 96, 64), dtype=F32, device=CPU).view(4, 96, 64)
    view = (4, 96, 64)
    for dim in range(3):
        for start, length in ((0, 2), (1, 3), (2, None)):
            part = checkpoint.read(
                W2, view, dim=dim, start=start, length=length, dtype=F32, device=CPU
            )
            stop = None if length is None else start + length
            expected = whole[(slice(None),) * dim + (slice(start, stop),)]
            assert torch.equal(part, expected)
            assert part.is_contiguous()


def test_dtype_is_converted_and_memory_is_owned(dbrx) -> None:
    checkpoint = open_checkpoint(dbrx)
    name = "transformer.norm_f.weight"
    first = checkpoint.read(name, (64,), dtype=F32, device=CPU)
    half = checkpoint.read(name, (64,), dim=0, start=8, length=8, dtype=torch.bfloat16, device=CPU)
    assert torch.equal(half, first[8:16].bfloat16())
    first.zero_()
    assert checkpoint.read(name, (64,), dtype=F32, device=CPU).abs().sum() > 0


def test_missing_tensor_and_wrong_shape_are_named(dbrx) -> None:
    checkpoint = open_checkpoint(dbrx)
    with pytest.raises(CheckpointError, match=r"no tensor lm_head\.bias"):
        checkpoint.read("lm_head.bias", (512,), dtype=F32, device=CPU)
    with pytest.raises(CheckpointError, match=r"lm_head.weight has shape \[512, 64\]"):
        checkpoint.read("lm_head.weight", (512, 32), dtype=F32, device=CPU)


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    tensors = {"a.weight": torch.randn(16, 8), "b.weight": torch.randn(8).bfloat16()}
    write_safetensors_checkpoint(folder, {"model_type": "llama"}, tensors)
    return folder


def broken_copy(folder: Path, tmp_path: Path, content: bytes) -> Path:
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    (tmp_path / "model.safetensors").write_bytes(content)
    return tmp_path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_truncated_anywhere_is_a_checkpoint_error(single, tmp_path, data) -> None:
    content = (single / "model.safetensors").read_bytes()
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(broken_copy(single, tmp_path, content[:cut]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_damaged_header_never_crashes(single, tmp_path, data) -> None:
    content = bytearray((single / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    folder = broken_copy(single, tmp_path, bytes(content))
    with contextlib.suppress(CheckpointError):
        checkpoint = open_checkpoint(folder)
        for name in checkpoint.names():
            checkpoint.read(name, (16, 8), dtype=F32, device=CPU)


def test_a_cut_file_names_the_tensor(single, tmp_path) -> None:
    content = (single / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"model.safetensors.*tensor [ab].weight ends at"):
        open_checkpoint(broken_copy(single, tmp_path, content[:-1]))


def test_a_file_that_shrinks_after_opening(single, tmp_path) -> None:
    content = (single / "model.safetensors").read_bytes()
    folder = broken_copy(single, tmp_path, content)
    checkpoint = open_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(content[:100])
    with pytest.raises(CheckpointError, match=r"cannot read tensor a\.weight"):
        checkpoint.read("a.weight", (16, 8), dtype=F32, device=CPU)


def test_missing_shard_is_named(dbrx) -> None:
    (dbrx / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.safetensors is missing"):
        open_checkpoint(dbrx)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "no weight_map"),
        ([1], "no weight_map"),
        ({"a": "../model.safetensors"}, "names the file"),
        ({"a": 3}, "names the file"),
        ({"nowhere": "model-00001-of-00003.safetensors"}, "lacks tensor nowhere"),
    ],
)
def test_bad_index(dbrx, weight_map, message) -> None:
    index = dbrx / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(dbrx)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        ("{}", "lacks the field model_type"),
        ('{"model_type": 3}', "lacks the field model_type"),
        ('{"model_type": "x", "eos_token_id": "</s>"}', "eos_token_id"),
        ("[" * 100_000, "not valid JSON"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_bad_config(dbrx, config, message) -> None:
    (dbrx / "config.json").write_text(config, errors="surrogateescape")
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(dbrx)


def test_end_tokens_come_from_generation_config_first(dbrx) -> None:
    assert open_checkpoint(dbrx).eos_token_ids == ()
    config = json.loads((dbrx / "config.json").read_text()) | {"eos_token_id": 7}
    (dbrx / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(dbrx).eos_token_ids == (7,)
    (dbrx / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert open_checkpoint(dbrx).eos_token_ids == (1, 2)


def test_folders_that_hold_no_usable_weights(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no config.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "some.gguf").touch()
    with pytest.raises(CheckpointError, match=r"name the file: .*some.gguf"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="holds neither"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match="pickles"):
        open_checkpoint(tmp_path)


def test_unsupported_kinds_are_refused(tmp_path) -> None:
    save_file({"a": torch.ones(4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="dtype I8"):
        open_checkpoint(tmp_path).read("a", (4,), dtype=F32, device=CPU)
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}'
    )
    with pytest.raises(CheckpointError, match="quantized with method 'gptq'"):
        open_checkpoint(tmp_path)
