"""Measures the tiles of DBRX's products on this GPU, for the tables that are shipped.

    python benchmarks/tune_tiles.py --ranks 8,4,2,1 --precisions bfloat16,fp8 --out FOLDER

A file per kind of GPU and Triton version; what a file in FOLDER holds of other shapes is kept. Copy
it to src/dropless/ops/triton/tuned. Any other shape is measured at the first start that needs it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from dropless.ops.fp8 import Fp8Tensor, quantize_channels
from dropless.ops.triton.tuning import read_cache, tune

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 6144, 48, 8, 128
EXPERTS, WIDTH = 16, 10752


def weights(ranks: int, precision: str) -> list[tuple[str, Tensor | Fp8Tensor]]:
    """One of each product of a block, as a rank holds it."""
    width = WIDTH // ranks
    is_fp8 = precision == "fp8"

    def noise(*shape: int) -> Tensor | Fp8Tensor:
        made = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)
        return quantize_channels(made) if is_fp8 else made

    if is_fp8:
        down = noise(EXPERTS, HIDDEN, width)
    else:
        stored = noise(EXPERTS, width, HIDDEN)
        assert isinstance(stored, Tensor)
        down = stored.transpose(1, 2)
    return [
        ("gate_up", noise(EXPERTS, 2 * width, HIDDEN)),
        ("down", down),
        ("linear", noise((HEADS + 2 * KV_HEADS) * HEAD_DIM // ranks, HIDDEN)),
        ("linear", noise(HIDDEN, HEADS * HEAD_DIM // ranks)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", default="8,4,2,1", help="tensor-parallel sizes")
    parser.add_argument("--precisions", default="bfloat16,fp8")
    parser.add_argument("--out", type=Path, default=Path("tuned"))
    arguments = parser.parse_args()
    read_cache(arguments.out)
    for ranks in map(int, arguments.ranks.split(",")):
        for precision in arguments.precisions.split(","):
            started = time.monotonic()
            tune(
                weights(ranks, precision),
                lambda _: None,
                folder=arguments.out,
                limit_s=3600.0,
            )
            print(f"{ranks} ranks, {precision}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
