"""The tables of tiles: what is shipped can be read, and what is asked for is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for GPUs")

from dropless.ops.fp8 import quantize_channels
from dropless.ops.triton import tiles
from dropless.ops.triton.tiles import Measured, Product, Tile, TileTable

SHIPPED = sorted((Path(tiles.__file__).parent / "tuned").glob("*.json"))
PRODUCT = Product("linear", (64, 32), "bfloat16", transposed=False)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_table_is_named_after_its_gpu_and_holds_tiles(path: Path) -> None:
    gpu = path.stem.split("-triton-")[0].replace("-", " ")
    table = TileTable.read(gpu, path.parent)
    assert table.path(path.parent) == path
    assert all(best for best in table.products.values())
    for product, best in table.products.items():
        assert all(measured.tile or product.op == "linear" for measured in best.values())


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    best = {16: Measured(Tile(16, 64, 128, 8, 3, 2), 4.5), 64: Measured(None, 9.0)}
    table = TileTable("A GPU", {PRODUCT: best})
    table.write(tmp_path)
    assert TileTable.read("A GPU", tmp_path) == table
    assert TileTable.read("Another GPU", tmp_path).products == {}


def test_a_table_of_another_triton_is_not_believed(tmp_path: Path) -> None:
    table = TileTable("A GPU", {PRODUCT: {16: Measured(None, 1.0)}})
    table.write(tmp_path)
    path = table.path(tmp_path)
    path.write_text(path.read_text().replace(f'"{tiles._VERSION}"', '"0.1"'))
    assert TileTable.read("A GPU", tmp_path).products == {}


def test_the_next_larger_size_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = Tile(16, 32, 64), Tile(64, 32, 64)
    best = {16: Measured(small, 1.0), 64: Measured(large, 2.0)}
    monkeypatch.setattr(tiles, "table_of", lambda gpu: TileTable(gpu, {PRODUCT: best}))
    tiles.forget_choices()
    found = [tiles._find(PRODUCT, size, "A GPU") for size in (4, 16, 32, 64, 256)]
    assert found == [small, small, large, large, large]
    tiles.forget_choices()


def test_weights_that_lie_otherwise_are_other_products() -> None:
    weight = torch.zeros(4, 32, 16, dtype=torch.bfloat16)
    lying = Product.of("down", weight.transpose(1, 2))
    assert Product.of("down", weight) == Product("down", (4, 32, 16), "bfloat16", transposed=False)
    assert lying == Product("down", (4, 16, 32), "bfloat16", transposed=True)
    assert Product.of("down", quantize_channels(weight)).dtype == "float8_e4m3fn"
