"""Measures which tiles are fastest for a weight on this GPU."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from dropless.ops.fp8 import Fp8Tensor, quantize_channels
from dropless.ops.triton.grouping import group_pairs
from dropless.ops.triton.linear import MAX_TILE_TOKENS, linear_by_library, linear_by_tiles
from dropless.ops.triton.moe import TILED_TOKENS, down_by_tiles, gate_up_by_tiles
from dropless.ops.triton.tiles import (
    SIZES,
    Measured,
    Product,
    Tile,
    TileTable,
    forget_choices,
    gpu_name,
    noting_strangers,
    table_of,
)

logger = logging.getLogger(__name__)

_TOP_K = 4  # experts a token, when pairs are made up
_SHARED_MEMORY = 225 * 1024  # of a program on Hopper
_FLUSH_BYTES = 128 << 20  # weights in turn, so that none is found in the cache
_MOST_PROGRAMS = 528  # that a split is meant to give work: four for each multiprocessor of Hopper
_LAUNCHES, _REPLAYS = 8, 5

Weight = Tensor | Fp8Tensor
Run = Callable[[Tile | None], None]  # a launch with this tile; None: of PyTorch's product


def read_cache(folder: Path) -> None:
    """Take in what an earlier start measured and left in `folder`."""
    table = table_of(torch.cuda.get_device_name())
    for product, best in TileTable.read(table.gpu, folder).products.items():
        table.products.setdefault(product, best)
    forget_choices()


def tune_for(
    compute: Callable[[], object],
    progress: Callable[[float], None],
    *,
    folder: Path | None = None,
    limit_s: float = 60.0,
) -> None:
    """`tune` what `compute`, on a few tokens, multiplies with and no table knows yet."""
    with noting_strangers() as strangers:
        compute()
    if strangers:
        names = ", ".join(f"{product.op} {list(product.shape)}" for product in strangers)
        logger.info("measuring tiles for %s", names)
        tune(list(strangers.values()), progress, folder=folder, limit_s=limit_s)


@torch.inference_mode()
def tune(
    weights: Sequence[tuple[str, Weight]],
    progress: Callable[[float], None],
    *,
    folder: Path | None = None,
    limit_s: float = 60.0,
) -> None:
    """Find the best tiles of these (op, weight), for all sizes, and leave them in `folder` for the
    next start. Stops after about `limit_s`: what is not measured by then is guessed."""
    deadline = time.monotonic() + limit_s
    table = table_of(gpu_name(weights[0][1].device))
    work = [(op, weight, size) for op, weight in weights for size in _sizes(op)]
    for done, (op, weight, size) in enumerate(work):
        progress(done / len(work))
        if time.monotonic() > deadline:
            break
        best = table.products.setdefault(Product.of(op, weight), {})
        best[size] = _best(op, weight, size)
    forget_choices()
    if folder is not None:
        table.write(folder)


def _sizes(op: str) -> tuple[int, ...]:
    largest = MAX_TILE_TOKENS if op == "linear" else TILED_TOKENS * _TOP_K
    return tuple(size for size in SIZES if size <= largest)


def _best(op: str, weight: Weight, size: int) -> Measured:
    run = _run_linear(weight, size) if op == "linear" else _run_experts(op, weight, size)
    tiles = list(_candidates(op, weight, size))

    def compile_(tile: Tile) -> Tile | None:
        try:
            run(tile)
        except OutOfResources:
            return None
        return tile

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fitting: list[Tile | None] = [tile for tile in pool.map(compile_, tiles) if tile]
    torch.cuda.synchronize()
    if op == "linear":
        run(None)  # the library is set up before it is measured
        fitting.append(None)
    return min(
        (Measured(tile, _microseconds(run, tile)) for tile in fitting),
        key=lambda measured: measured.microseconds,
    )


def _candidates(op: str, weight: Weight, size: int) -> Iterator[Tile]:
    """Tiles that are worth a try: rows for about all tokens of an expert, sums that fit into the
    registers, and enough in flight to hide the memory's latency."""
    itemsize = 1 if isinstance(weight, Fp8Tensor) else 2
    wanted_rows = min(128.0, size if op == "linear" else size / weight.shape[0])
    possible_rows = [rows for rows in (16, 32, 64, 128) if rows >= wanted_rows][:2]
    factors = 2 if op == "gate_up" else 1
    for rows, columns, depth_bytes, warps, stages in itertools.product(
        possible_rows, (16, 32, 64, 128), (128, 256, 512), (4, 8), (3, 4, 6)
    ):
        if columns == 16 and op != "linear":
            continue
        sums = factors * columns * rows
        in_flight = stages * depth_bytes * (factors * columns + rows)
        right_warps = sums <= 64 * 128 if warps == 4 else sums >= 64 * 64
        if not right_warps or not 32 * 1024 < in_flight <= _SHARED_MEMORY:
            continue
        depth = depth_bytes // itemsize
        yield Tile(rows, columns, depth, warps, stages)
        if op == "linear":
            programs = -(-size // rows) * -(-weight.shape[0] // columns)
            for splits in (2, 4, 8):
                if programs * splits <= _MOST_PROGRAMS and weight.shape[1] >= splits * depth:
                    yield Tile(rows, columns, depth, warps, stages, splits)


def _microseconds(run: Run, tile: Tile | None) -> float:
    """Of one launch, in a graph of several."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            run(tile)
    times = []
    for _ in range(_REPLAYS):
        begin = torch.Event("cuda", enable_timing=True)
        end = torch.Event("cuda", enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) * 1e3 / _LAUNCHES)
    return sorted(times)[_REPLAYS // 2]


def _run_experts(op: str, weight: Weight, size: int) -> Run:
    """Noise, each token of which is sent to experts at random; for "down" as if it came of them."""
    num_experts, inputs = weight.shape[0], weight.shape[2]
    shape = (size // _TOP_K, num_experts)
    ids = torch.rand(shape, device=weight.device).topk(min(_TOP_K, num_experts)).indices
    grouping = group_pairs(ids, num_experts)
    product, num_rows = (gate_up_by_tiles, len(ids)) if op == "gate_up" else (down_by_tiles, size)
    x = torch.randn(num_rows, inputs, dtype=torch.bfloat16, device=weight.device)

    def run(tile: Tile | None) -> None:
        assert tile is not None  # PyTorch has no product of this kind
        product(x, weight, grouping, tile)

    return run


def _run_linear(weight: Weight, size: int) -> Run:
    x = torch.randn(size, weight.shape[1], dtype=torch.bfloat16, device=weight.device)
    copies = max(1, min(_LAUNCHES, _FLUSH_BYTES // weight.nbytes))
    turn = itertools.cycle([_noise_like(weight) for _ in range(copies)])

    def run(tile: Tile | None) -> None:
        own = next(turn)
        if tile is None:
            linear_by_library(x, own)
        else:
            linear_by_tiles(x, own, None, tile)

    return run


def _noise_like(weight: Weight) -> Weight:
    shape, device = tuple(weight.shape), weight.device
    noise = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)
    return quantize_channels(noise) if isinstance(weight, Fp8Tensor) else noise
