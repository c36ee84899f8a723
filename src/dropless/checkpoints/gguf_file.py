"""A GGUF file, or the parts of a split one, under published tensor names and layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES

from dropless.checkpoints.gguf_config import config_from_metadata, eos_token_ids
from dropless.checkpoints.gguf_header import GGUFHeader, GGUFTensor, read_header
from dropless.checkpoints.gguf_names import TensorSource, published_tensors
from dropless.checkpoints.slices import Slab
from dropless.checkpoints.stored import StoredCheckpoint
from dropless.errors import CheckpointError

# Elements unpacked at a time: the scratch arrays of a block format then stay in the CPU's cache.
_CHUNK_ELEMENTS = 1 << 17


class GGUFFile(StoredCheckpoint):
    """The `Checkpoint` of a GGUF file of the architecture llama (Mixtral too), qwen2 or dbrx.

    A tensor is mapped only while it is read and unpacked piece by piece into its destination, so
    that peak memory is the result alone.

    Raises:
        CheckpointError: truncated, damaged or of an unsupported kind.
        ConfigError: the metadata lacks a key or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = _read_parts(path)
        self.config: Mapping[str, Any] = config_from_metadata(header)
        self.eos_token_ids = eos_token_ids(header)
        self.quantized = any(GGML_QUANT_SIZES[t.kind][0] > 1 for t in header.tensors.values())
        architecture = header.metadata["general.architecture"]
        self._sources = published_tensors(architecture, self.config, header.tensors)

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""
        return name in self._sources

    def names(self) -> list[str]:
        """All tensors by their published names, in the order of the file."""
        return list(self._sources)

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        return self._sources[name].shape

    def _copy_part(self, out: torch.Tensor, name: str, slab: Slab) -> None:
        """Block formats are unpacked through float32."""
        source = self._sources[name]
        try:
            _fill(out, source, slab)
        except NotImplementedError as error:
            raise CheckpointError(
                f"tensor {name} in {source.tensor.file} is packed as {source.tensor.kind.name},"
                " which cannot be unpacked; use another quantization of the model"
            ) from error
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot read tensor {name} from {source.tensor.file}: {error};"
                " the file has changed since it was opened or is damaged"
            ) from error


def _read_parts(path: Path) -> GGUFHeader:
    """The header of the file; of a split model, the first part's metadata and all tensors."""
    header = read_header(path)
    count = header.metadata.get("split.count", 1)
    if count in (0, 1):
        return header
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if match is None or int(match[2]) != count:
        raise CheckpointError(
            f"{path} is one of {count} parts, but its name does not end in"
            f" -00001-of-{count:05}.gguf; give the parts their original names back"
        )
    parts = [path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise CheckpointError(f"{path} is one of {count} parts; missing are {', '.join(missing)}")
    headers = [read_header(part) for part in parts]
    tensors = {name: tensor for part in headers for name, tensor in part.tensors.items()}
    return replace(headers[0], tensors=tensors)


def _fill(out: torch.Tensor, source: TensorSource, slab: Slab) -> None:
    """Write the slab of a published tensor into `out`, [rows, columns]."""
    if source.transposed:
        _fill_transposed(out, source.tensor, slab)
        return
    if source.rope_heads is not None:
        _fill_rope_rows(out, source.tensor, slab, source.rope_heads)
        return
    base = 0 if source.expert is None else source.expert * source.shape[0]
    done = 0
    for start, stop in slab.row_ranges:
        rows = out[done : done + stop - start]
        _unpack(rows, source.tensor, base + start, base + stop, slab.columns)
        done += stop - start


def _fill_transposed(out: torch.Tensor, tensor: GGUFTensor, slab: Slab) -> None:
    """Stored [experts, hidden, width], published [experts * width, hidden]."""
    _, hidden, width = tensor.shape
    done = 0
    for start, stop in slab.row_ranges:
        while start < stop:
            expert, first = divmod(start, width)
            last = min(width, first + stop - start)
            stored_rows = (expert * hidden + slab.columns[0], expert * hidden + slab.columns[1])
            rows = out[done : done + last - first]
            _unpack(rows.T, tensor, *stored_rows, (first, last))
            done += last - first
            start += last - first


def _fill_rope_rows(out: torch.Tensor, tensor: GGUFTensor, slab: Slab, heads: int) -> None:
    """Undo llama.cpp's reordering of q and k rows, head by head.

    llama.cpp rotates neighbours (2j, 2j+1), the published layout rotates halves (j, j + d/2). Its
    converter therefore stores the published row t * d/2 + j of a head as row 2j + t.
    """
    if len(tensor.shape) == 1:  # a bias: one row whose columns are the rows of the matrix
        bias = torch.empty(1, tensor.shape[0])
        _unpack(bias, tensor, 0, 1, (0, tensor.shape[0]))
        ordered = bias.view(heads, -1, 2).transpose(1, 2).reshape(1, -1)
        out.copy_(ordered[:, slab.columns[0] : slab.columns[1]])
        return
    head_dim = tensor.shape[0] // heads
    stored = torch.empty(head_dim, slab.num_columns)
    done = 0
    for start, stop in slab.row_ranges:
        while start < stop:
            head, first = divmod(start, head_dim)
            last = min(head_dim, first + stop - start)
            _unpack(stored, tensor, head * head_dim, (head + 1) * head_dim, slab.columns)
            ordered = stored.view(head_dim // 2, 2, -1).transpose(0, 1).reshape(head_dim, -1)
            out[done : done + last - first].copy_(ordered[first:last])
            done += last - first
            start += last - first


def _unpack(
    out: torch.Tensor, tensor: GGUFTensor, start: int, stop: int, columns: tuple[int, int]
) -> None:
    """Rows `start:stop` and `columns` of the tensor, seen as rows of its last dimension, as
    numbers into `out` [stop - start, columns]; any strides, dtype and device."""
    block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
    first_block, last_block = columns[0] // block, -(-columns[1] // block)
    width = (last_block - first_block) * block
    if start == stop or width == 0:
        return
    raw = np.memmap(
        tensor.file,
        np.uint8,
        mode="r",
        offset=tensor.offset + start * tensor.row_bytes,
        shape=(stop - start, tensor.row_bytes),
    )
    skipped = columns[0] - first_block * block
    step = max(1, _CHUNK_ELEMENTS // width)
    for begin in range(0, stop - start, step):
        piece = raw[begin : begin + step, first_block * block_bytes : last_block * block_bytes]
        # As one long row: dequantize otherwise works in groups of 16 rows, several times slower.
        values = gguf.dequantize(np.array(piece).reshape(1, -1), tensor.kind)
        numbers = torch.from_numpy(values).view(-1, width)
        out[begin : begin + step].copy_(numbers[:, skipped : skipped + columns[1] - columns[0]])
