"""A Hugging Face model folder: config.json and safetensors weights, in one file or sharded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dropless.checkpoints.folder import read_config, read_eos_token_ids, read_json_object
from dropless.checkpoints.safetensors_header import DTYPE_BYTES, StoredTensor, read_header
from dropless.checkpoints.safetensors_part import copy_part
from dropless.checkpoints.slices import Slab
from dropless.checkpoints.stored import StoredCheckpoint
from dropless.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


class SafetensorsFolder(StoredCheckpoint):
    """The `Checkpoint` of a folder in the published layout.

    Opening reads every file's header and compares it with the file's size, so that a truncated
    download fails here and not in the middle of loading.

    Raises:
        CheckpointError: files or tensors are missing, truncated, or of an unsupported kind.
        ConfigError: config.json or generation_config.json is damaged.
    """

    quantized = False

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.config: Mapping[str, Any] = read_config(folder)
        if self.config.get("quantization_config"):
            method = dict(self.config["quantization_config"]).get("quant_method", "unknown")
            raise CheckpointError(
                f"{folder} is quantized with method {method!r}, which is not supported;"
                " use the model's unquantized checkpoint or a GGUF file"
            )
        self.eos_token_ids = read_eos_token_ids(folder, self.config)
        self._tensors = _open_all(folder)

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""
        return name in self._tensors

    def names(self) -> list[str]:
        """All tensor names, in the order of the files."""
        return list(self._tensors)

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        stored = self._tensors[name]
        if stored.dtype not in DTYPE_BYTES:
            raise CheckpointError(
                f"tensor {name} in {stored.file} has dtype {stored.dtype}; supported are"
                f" {', '.join(DTYPE_BYTES)}"
            )
        return stored.shape

    def _copy_part(self, out: Tensor, name: str, slab: Slab) -> None:
        stored = self._tensors[name]
        try:
            copy_part(out, stored, slab)
        except OSError as error:
            raise CheckpointError(
                f"cannot read tensor {name} from {stored.file}: {error}; fetch the file again"
            ) from error


def _open_all(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder, from its index or its single file."""
    index_path = folder / INDEX_NAME
    if index_path.is_file():
        return _open_sharded(folder, index_path)
    single = folder / SINGLE_NAME
    if single.is_file():
        return read_header(single)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise CheckpointError(
            f"{folder} holds weights as pickles only, which can run code when opened;"
            " use a safetensors version of the model"
        )
    raise CheckpointError(f"{folder} holds neither {SINGLE_NAME} nor {INDEX_NAME}")


def _open_sharded(folder: Path, index_path: Path) -> dict[str, StoredTensor]:
    """The tensors the index lists, each checked to be in the file the index names."""
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path} has no weight_map; fetch the file again")
    headers: dict[str, dict[str, StoredTensor]] = {}
    tensors = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(f"{index_path} names the file {file_name!r} for tensor {name}")
        if file_name not in headers:
            path = folder / file_name
            if not path.is_file():
                raise CheckpointError(
                    f"{path} is missing (it holds tensor {name}, says {INDEX_NAME});"
                    " the download is incomplete: fetch the model again"
                )
            headers[file_name] = read_header(path)
        stored = headers[file_name].get(name)
        if stored is None:
            raise CheckpointError(
                f"{folder / file_name} lacks tensor {name}, which {INDEX_NAME} places there"
            )
        tensors[name] = stored
    return tensors
