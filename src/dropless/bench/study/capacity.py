"""Part capacity: the dropless layer beside one of fixed capacity, over even and skewed routing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dropless.bench.study.fixed_capacity import Dispatch, capacity_of, fixed_capacity_experts
from dropless.bench.study.models import config_of
from dropless.bench.study.options import Options
from dropless.bench.study.records import append, machine
from dropless.bench.study.routing import zipf_choices
from dropless.bench.study.timing import microseconds, tune_tiles
from dropless.models.registry import parse_config
from dropless.ops.moe import fused_experts

PART = "capacity"
EXPONENTS = (0.0, 0.5, 1.0)
FACTORS = (1.0, 1.25, 1.5, 2.0)
TOKENS = (64, 256, 1024, 4096, 8192)
TINY_TOKENS = (16, 64)


@torch.inference_mode()
def run(options: Options, folder: Path) -> None:
    """One rank's width of one layer of DBRX."""
    config = parse_config(config_of("dbrx", tiny=options.tiny))
    width = config.ffn_width // options.ranks
    experts, hidden, top_k = config.num_experts, config.hidden_size, config.top_k
    dtype = torch.float32 if options.tiny else torch.bfloat16
    gate_up = _weights((experts, 2 * width, hidden), dtype, options.device)
    down = _weights((experts, width, hidden), dtype, options.device).mT  # as DBRX stores it
    rows: list[dict[str, Any]] = []
    for num_tokens in TINY_TOKENS if options.tiny else TOKENS:
        x = torch.randn(num_tokens, hidden, device=options.device, dtype=dtype)
        topk_weights = torch.full((num_tokens, top_k), 1 / top_k, device=x.device, dtype=dtype)
        for exponent in EXPONENTS:
            if time.monotonic() > options.deadline:
                options.say(f"no time left for {num_tokens} tokens, exponent {exponent}")
                continue
            ids = zipf_choices(num_tokens, experts, top_k, exponent).to(x.device)
            made = _case(x, gate_up, down, topk_weights, ids, options.device)
            rows += [{"tokens": num_tokens, "exponent": exponent, **row} for row in made]
            options.say(_line(rows[-len(made) :]))
    if rows:
        shape = {"experts": experts, "top_k": top_k, "hidden": hidden, "width": width}
        record = {
            "machine": machine(options.device, 1),
            "tiny": options.tiny,
            **shape,
            "rows": rows,
        }
        options.say(f"kept in {append(folder, PART, f'width-{width}', record)}")


def _case(
    x: Tensor, gate_up: Tensor, down: Tensor, topk_weights: Tensor, ids: Tensor, device: str
) -> list[dict[str, Any]]:
    """The dropless layer (factor None), then each capacity."""

    def dropless() -> Tensor:
        return fused_experts(x, gate_up, down, topk_weights, ids)

    tune_tiles(dropless, device)
    rows: list[dict[str, Any]] = [
        {"factor": None, "dropped": 0.0, "wasted": 0.0, "us": microseconds(dropless, device)}
    ]
    (num_tokens, top_k), experts = ids.shape, len(down)
    for factor in FACTORS:
        capacity = capacity_of(factor, num_tokens, experts, top_k)
        kept = Dispatch.of(ids, experts, capacity).kept
        places = experts * capacity

        def fixed(capacity: int = capacity) -> Tensor:
            return fixed_capacity_experts(x, gate_up, down, topk_weights, ids, capacity)

        rows.append(
            {
                "factor": factor,
                "dropped": 1.0 - float(kept.float().mean()),
                "tokens_hurt": 1.0 - float(kept.view(num_tokens, top_k).all(1).float().mean()),
                "wasted": 1.0 - int(kept.sum()) / places,
                "us": microseconds(fixed, device),
            }
        )
    return rows


def _weights(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, 0.02)


def _line(rows: list[dict[str, Any]]) -> str:
    dropless, *fixed = rows
    times = ", ".join(f"{row['factor']:g}: {row['us']:.0f} us" for row in fixed)
    return (
        f"{dropless['tokens']} tokens, exponent {dropless['exponent']:g}:"
        f" dropless {dropless['us']:.0f} us; capacity {times}"
    )
