"""Reading ahead gives what plain reading gives, in bounded memory, and its errors at the read."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dropless.checkpoints import read_ahead, safetensors_part
from dropless.checkpoints.checkpoint import Read
from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.read_ahead import ReadAhead
from dropless.checkpoints.safetensors_header import read_header
from dropless.checkpoints.slices import Slab
from dropless.checkpoints.stored import StoredCheckpoint
from dropless.checkpoints.writer import write_safetensors_checkpoint
from dropless.errors import CheckpointError
from tests.checkpoints.small_gguf import llama_metadata, llama_tensors, write_gguf

CPU = torch.device("cpu")
SHAPES = {"vector": (300,), "matrix": (37, 50), "experts": (3 * 14, 9), "wide": (2, 700)}
VIEWS = [*SHAPES.items(), ("experts", (3, 14, 9))]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored")
    tensors = {
        name: torch.randn(shape).to(dtype)
        for (name, shape), dtype in zip(SHAPES.items(), (*DTYPES, torch.bfloat16), strict=True)
    }
    write_safetensors_checkpoint(path, {"model_type": "llama"}, tensors, shards=2)
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return write_gguf(path, llama_metadata(), llama_tensors())


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


@st.composite
def reads(draw: st.DrawFn) -> Read:
    name, shape = draw(st.sampled_from(VIEWS))
    dim = draw(st.none() | st.integers(0, len(shape) - 1))
    size = shape[dim or 0]
    start = 0 if dim is None else draw(st.integers(0, size))
    length = None if dim is None else draw(st.none() | st.integers(0, size - start))
    return Read(name, shape, dim, start, length, draw(st.sampled_from(DTYPES)))


def read_one(checkpoint: StoredCheckpoint | ReadAhead, read: Read) -> Tensor:
    part = {"dim": read.dim, "start": read.start, "length": read.length}
    return checkpoint.read(read.name, read.shape, **part, dtype=read.dtype, device=CPU)


def whole(name: str, dtype: torch.dtype = torch.float32) -> Read:
    return Read(name, SHAPES[name], None, 0, None, dtype)


@settings(max_examples=60, deadline=None)
@given(
    reads=st.lists(reads(), max_size=4),
    part_elements=st.integers(20, 400),
    ahead=st.integers(1, 5),
    span_bytes=st.integers(200, 3000),
    gap_bytes=st.sampled_from([0, 40, 10_000]),
)
def test_in_any_parts_it_is_the_stored_slice(
    folder: Path, reads: list[Read], part_elements: int, ahead: int, span_bytes: int, gap_bytes: int
) -> None:
    checkpoint = stored(folder)
    expected = [slice_of(read_one(checkpoint, whole(read.name)), read) for read in reads]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_ahead, "_PART_ELEMENTS", part_elements)
        patch.setattr(read_ahead, "_PARTS_AHEAD", ahead)
        patch.setattr(safetensors_part, "_SPAN_BYTES", span_bytes)
        patch.setattr(safetensors_part, "_GAP_BYTES", gap_bytes)
        with ReadAhead(checkpoint, reads, CPU, 2) as source:
            found = [read_one(source, read) for read in reads]
    for tensor, want in zip(found, expected, strict=True):
        assert tensor.dtype == want.dtype
        assert tensor.is_contiguous()
        assert torch.equal(tensor, want)


def slice_of(tensor: Tensor, read: Read) -> Tensor:
    view = tensor.view(read.shape)
    if read.dim is not None:
        length = view.shape[read.dim] - read.start if read.length is None else read.length
        view = view.narrow(read.dim, read.start, length)
    return view.to(read.dtype)


def stored(path: Path) -> StoredCheckpoint:
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, StoredCheckpoint)
    return checkpoint


@settings(max_examples=25, deadline=None)
@given(part_elements=st.integers(1, 5000), dim=st.integers(0, 1), data=st.data())
def test_gguf_in_any_parts(
    gguf_file: Path, part_elements: int, dim: int, data: st.DataObject
) -> None:
    checkpoint = stored(gguf_file)
    name, shape = "model.layers.0.self_attn.q_proj.weight", (64, 64)  # its rows are reordered
    start = data.draw(st.integers(0, 63))
    part = Read(name, shape, dim, start, 64 - start, torch.float32)
    expected = slice_of(read_one(checkpoint, Read(name, shape, None, 0, None, part.dtype)), part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_ahead, "_PART_ELEMENTS", max(part_elements, 64))
        with ReadAhead(checkpoint, [part], CPU, 2) as source:
            assert torch.equal(read_one(source, part), expected)


class Watched:
    """Counts the parts that were begun and not yet asked for, and can hold them back."""

    def __init__(self, checkpoint: StoredCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[str] = []
        self.go_on = threading.Event()
        copy = checkpoint._copy_part

        def copy_part(out: Tensor, name: str, slab: Slab) -> None:
            self.started.append(name)
            self.go_on.wait(10)
            copy(out, name, slab)

        monkeypatch.setattr(checkpoint, "_copy_part", copy_part)


def test_no_more_is_begun_than_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = stored(folder)
    watched = Watched(checkpoint, monkeypatch)
    watched.go_on.set()
    monkeypatch.setattr(read_ahead, "_PART_ELEMENTS", 100)
    monkeypatch.setattr(read_ahead, "_PARTS_AHEAD", 4)
    plan = [whole("vector"), whole("matrix"), whole("wide")]
    with ReadAhead(checkpoint, plan, CPU, 3) as source:
        taken = 0
        for read, parts in zip(plan, (3, 19, 14), strict=True):
            time.sleep(0.05)
            assert len(watched.started) <= taken + 4
            read_one(source, read)
            taken += parts
    assert len(watched.started) == taken
    assert sorted(watched.started, key=[read.name for read in plan].index) == watched.started


def test_leaving_half_way_ends_what_was_begun(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = stored(folder)
    watched = Watched(checkpoint, monkeypatch)
    monkeypatch.setattr(read_ahead, "_PART_ELEMENTS", 10)

    def fail_half_way() -> None:
        with ReadAhead(checkpoint, [whole("matrix"), whole("wide")], CPU, 2):
            threading.Timer(0.1, watched.go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert len(watched.started) <= 2, "only what already ran"


def test_a_file_cut_short_is_an_error_at_the_read(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    checkpoint = stored(tmp_path)
    name = "model-00002-of-00002.safetensors"
    end = read_header(tmp_path / name)["wide"].end
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[: end - 1])
    plan = [whole("vector"), whole("wide"), whole("matrix")]
    with ReadAhead(checkpoint, plan, CPU, 2) as source:
        read_one(source, plan[0])
        message = rf"cannot read tensor wide from .*{name}: the file ends at byte {end - 1}"
        with pytest.raises(CheckpointError, match=message):
            read_one(source, plan[1])


def test_an_absent_tensor_is_known_before_anything_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = stored(folder)
    watched = Watched(checkpoint, monkeypatch)
    plan = [whole("matrix"), Read("absent", (3,), None, 0, None, torch.float32)]
    with pytest.raises(CheckpointError, match="no tensor absent"):
        ReadAhead(checkpoint, plan, CPU, 2)
    assert not watched.started


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("value", "what"), [("nan", "NaN"), ("inf", "infinity"), ("-inf", "infinity")]
)
def test_what_is_not_finite_is_named(
    tmp_path: Path, dtype: torch.dtype, value: str, what: str
) -> None:
    tensor = torch.randn(50, 20).to(dtype)
    tensor[31, 7] = float(value)
    tensors = {"good": torch.randn(8), "bad": tensor}
    write_safetensors_checkpoint(tmp_path, {"model_type": "llama"}, tensors)
    checkpoint = stored(tmp_path)
    halves = [Read("bad", (50, 20), 0, start, 25, torch.float32) for start in (0, 25)]
    with ReadAhead(checkpoint, halves, CPU, 2) as source:
        assert torch.equal(read_one(source, halves[0]), tensor[:25].float())
        with pytest.raises(CheckpointError, match=f"tensor bad of .* holds {what}"):
            read_one(source, halves[1])


def test_what_float16_cannot_hold_is_told_apart(tmp_path: Path) -> None:
    tensors = {"big": torch.tensor([1.0, 70000.0])}
    write_safetensors_checkpoint(tmp_path, {"model_type": "llama"}, tensors)
    checkpoint = stored(tmp_path)
    read = Read("big", (2,), None, 0, None, torch.float16)
    with pytest.raises(CheckpointError, match=r"beyond ±65504.*set quantization to 'none'"):
        read_one(checkpoint, read)
    assert read_one(checkpoint, Read("big", (2,), None, 0, None, torch.float32))[1] == 70000
