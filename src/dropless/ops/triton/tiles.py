"""How large the tiles of a product are: a table, measured for each kind of GPU and shape."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor
from dropless.ops.triton.launch import early_launch

logger = logging.getLogger(__name__)

SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)  # tokens, or pairs; others use the next
_WORTH_TUNING = 4 << 20  # bytes: a smaller weight is read in 2 us
_SHIPPED = Path(__file__).parent / "tuned"
_VERSION = ".".join(triton.__version__.split(".")[:2])


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes: rows of tokens times columns of outputs, `depth` at a time. In
    linear layers the inputs may be split over several programs."""

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 4
    splits: int = 1

    def arguments(self, x: Tensor) -> dict[str, Any]:
        """For the launch of a kernel that multiplies x."""
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "DEPTH": self.depth,
            "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
            "num_warps": self.warps,
            "num_stages": self.stages,
            **early_launch(x),
        }


# By op and dtype of the weight. Large enough for prefill; a step of few tokens, for which most rows
# are padding, waits for the weights anyway.
_FIXED = {
    ("linear", "float32"): Tile(32, 64, 32, stages=2),
    ("gate_up", "float32"): Tile(32, 64, 32, stages=2),
    ("down", "float32"): Tile(32, 64, 32, stages=2),
    ("linear", "bfloat16"): Tile(64, 64, 128),
    ("gate_up", "bfloat16"): Tile(128, 64, 64, warps=8),
    ("down", "bfloat16"): Tile(128, 128, 64, warps=8, stages=3),
    ("linear", "float8_e4m3fn"): Tile(64, 64, 256),
    ("gate_up", "float8_e4m3fn"): Tile(128, 64, 128, warps=8),
    ("down", "float8_e4m3fn"): Tile(128, 128, 128, warps=8),
}


@dataclass(frozen=True, slots=True)
class Product:
    """What tiles are chosen for, beside the number of tokens."""

    op: str  # "gate_up", "down" or "linear"
    shape: tuple[int, ...]  # of the weight
    dtype: str  # of the weight's values
    transposed: bool  # whether its outputs, rather than its inputs, lie side by side

    @classmethod
    def of(cls, op: str, weight: Tensor | Fp8Tensor) -> Product:
        values = weight if isinstance(weight, Tensor) else weight.values
        dtype = str(values.dtype).removeprefix("torch.")
        return cls(op, tuple(values.shape), dtype, values.stride(-1) != 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """The best tile for one number of tokens or pairs; None: PyTorch's own product is faster."""

    tile: Tile | None
    microseconds: float


@dataclass(slots=True)
class TileTable:
    """What was measured on one kind of GPU with one version of Triton, which makes the kernels."""

    gpu: str
    products: dict[Product, dict[int, Measured]] = field(default_factory=dict)

    @classmethod
    def read(cls, gpu: str, folder: Path) -> TileTable:
        """The table in `folder`; an empty one where there is none for this GPU and Triton."""
        table = cls(gpu)
        path = table.path(folder)
        if not path.is_file():
            return table
        content = json.loads(path.read_text())
        if content["triton"] != _VERSION:
            logger.info("%s is of Triton %s, not %s", path, content["triton"], _VERSION)
            return table
        for row in content["products"]:
            product = Product(row["op"], tuple(row["shape"]), row["dtype"], row["transposed"])
            table.products[product] = {
                entry["size"]: Measured(
                    Tile(*entry["tile"]) if entry["tile"] else None, entry["us"]
                )
                for entry in row["best"]
            }
        return table

    def write(self, folder: Path) -> None:
        """Into `folder`, whole or not at all."""
        rows = []
        for product, best in self.products.items():
            entries = [
                {
                    "size": size,
                    "tile": list(asdict(measured.tile).values()) if measured.tile else None,
                    "us": round(measured.microseconds, 1),
                }
                for size, measured in sorted(best.items())
            ]
            rows.append({**asdict(product), "best": entries})
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        heading = f'"gpu": {json.dumps(self.gpu)}, "triton": "{_VERSION}"'
        folder.mkdir(parents=True, exist_ok=True)
        path = self.path(folder)
        part = path.with_suffix(".part")
        part.write_text(f'{{{heading}, "products": [\n  {lines}\n]}}\n')
        part.replace(path)

    def path(self, folder: Path) -> Path:
        return folder / f"{self.gpu.replace(' ', '-')}-triton-{_VERSION}.json"


@cache
def table_of(gpu: str) -> TileTable:
    """What is shipped for this kind of GPU; `tuning` adds what it measures."""
    return TileTable.read(gpu, _SHIPPED)


def tile_for(op: str, weight: Tensor | Fp8Tensor, size: int) -> Tile | None:
    """The best known tile for `size` tokens (of op "linear") or pairs of a token and an expert
    ("gate_up", "down"). None: PyTorch's own product is faster."""
    product = Product.of(op, weight)
    if weight.device.type != "cuda":
        return _guess(product, size)
    gpu = gpu_name(weight.device)
    is_large = weight.nbytes >= _WORTH_TUNING
    if _strangers is not None and is_large and product not in table_of(gpu).products:
        _strangers.setdefault(product, (op, weight))
    return _find(product, next_size(size), gpu)


def fixed_tile(op: str, weight: Tensor | Fp8Tensor) -> Tile:
    """The one tile of a weight whatever it is multiplied with, for results that must not depend on
    that. No measurement has a say in it, or a token could change from one start to the next."""
    return _FIXED[op, Product.of(op, weight).dtype]


_strangers: dict[Product, tuple[str, Tensor | Fp8Tensor]] | None = None


@contextmanager
def noting_strangers() -> Iterator[dict[Product, tuple[str, Tensor | Fp8Tensor]]]:
    """Gathers, with one weight of each, the products that are asked for meanwhile and that the
    table does not have."""
    global _strangers
    _strangers = {}
    try:
        yield _strangers
    finally:
        _strangers = None


def next_size(size: int) -> int:
    """The size of the table that stands for `size`."""
    return next((known for known in SIZES if known >= size), SIZES[-1])


@cache
def gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


@cache
def _find(product: Product, size: int, gpu: str) -> Tile | None:
    known = table_of(gpu).products.get(product, {})
    if not known:
        return _guess(product, size)
    nearest = min((other for other in known if other >= size), default=max(known))
    return known[nearest].tile


def forget_choices() -> None:
    """After a table has changed."""
    _find.cache_clear()


def _guess(product: Product, size: int) -> Tile | None:
    """What is seldom bad, where nothing was measured."""
    if product.dtype == "float32":
        return Tile(_rows(product, size), 64, 32, stages=2)
    is_fp8 = product.dtype == "float8_e4m3fn"
    if product.op == "linear":
        return Tile(_rows(product, size), 64, 256) if is_fp8 and size <= 64 else None
    if product.op == "gate_up":
        return Tile(_rows(product, size), 64, 128)
    return Tile(_rows(product, size), 64 if is_fp8 else 128, 128 if is_fp8 else 64, stages=3)


def _rows(product: Product, size: int) -> int:
    """Those of an average expert, or all of a linear layer's."""
    average = -(-size // product.shape[0]) if len(product.shape) == 3 else size
    return min(64, max(16, int(triton.next_power_of_2(average))))
