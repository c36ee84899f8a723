"""Part capacity: the dropless layer beside one of fixed capacity, over even and skewed routing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dropless.bench.study.data import Point, Results, machine
from dropless.bench.study.fixed_capacity import Dispatch, capacity_of, fixed_capacity_experts
from dropless.bench.study.models import config_of
from dropless.bench.study.progress import say
from dropless.bench.study.routing import zipf_choices
from dropless.bench.study.settings import Options
from dropless.bench.study.timing import microseconds, tune_tiles
from dropless.models.registry import parse_config
from dropless.ops.moe import fused_experts

PART = "capacity"
EXPONENTS = (0.0, 0.5, 1.0)
FACTORS = (1.0, 1.25, 1.5, 2.0)
_RANKS = 8  # that share the layer, of which one is measured
_CALLS = 10
_TUNED_TOKENS = 8


@torch.inference_mode()
def run(options: Options) -> None:
    """One of eight ranks' width of one layer of DBRX."""
    scale = options.scale
    config = parse_config(config_of("dbrx", tiny=scale.is_tiny))
    width = config.ffn_width // _RANKS
    about = {
        "part": PART,
        "experts": config.num_experts,
        "top_k": config.top_k,
        "hidden": config.hidden_size,
        "width": width,
        "ranks": _RANKS,
        **machine(scale.device, 1),
    }
    results = Results(options.data / f"{PART}.json", about)
    layer = _Layer(config.num_experts, config.top_k, config.hidden_size, width, scale.device)
    for num_tokens in scale.capacity_tokens:
        for exponent in EXPONENTS:
            if results.has(tokens=num_tokens, exponent=exponent, factor=FACTORS[-1]):
                continue
            if options.is_late:
                say(f"no time left for {num_tokens} tokens, exponent {exponent:g}")
                return
            for point in layer.points(num_tokens, exponent):
                if not results.has(tokens=num_tokens, exponent=exponent, factor=point["factor"]):
                    results.add(point)
                say(_line(point))
    results.complete()
    say(f"kept in {results.path}")


class _Layer:
    """Experts of made-up weights."""

    def __init__(self, experts: int, top_k: int, hidden: int, width: int, device: str) -> None:
        self._experts, self._top_k, self._hidden = experts, top_k, hidden
        self._device = device
        self._dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self._gate_up = self._weights(experts, 2 * width, hidden)
        self._down = self._weights(experts, width, hidden).mT  # as DBRX stores it
        tune_tiles(self._dropless(*self._tokens(_TUNED_TOKENS, 0.0)), device)

    def points(self, num_tokens: int, exponent: float) -> Iterator[Point]:
        """The dropless layer, whose factor is None, then each capacity."""
        x, weights, ids = self._tokens(num_tokens, exponent)
        common = {"tokens": num_tokens, "exponent": exponent}
        taken = self._microseconds(self._dropless(x, weights, ids))
        yield {**common, "factor": None, "dropped": 0.0, "hurt": 0.0, "wasted": 0.0, "us": taken}
        for factor in FACTORS:
            capacity = capacity_of(factor, num_tokens, self._experts, self._top_k)
            kept = Dispatch.of(ids, self._experts, capacity).kept
            yield {
                **common,
                "factor": factor,
                "dropped": 1.0 - float(kept.float().mean()),
                "hurt": 1.0 - float(kept.view(num_tokens, self._top_k).all(1).float().mean()),
                "wasted": 1.0 - int(kept.sum()) / (self._experts * capacity),
                "us": self._microseconds(self._fixed(x, weights, ids, capacity)),
            }

    def _dropless(self, x: Tensor, weights: Tensor, ids: Tensor) -> Callable[[], Tensor]:
        return lambda: fused_experts(x, self._gate_up, self._down, weights, ids)

    def _fixed(
        self, x: Tensor, weights: Tensor, ids: Tensor, capacity: int
    ) -> Callable[[], Tensor]:
        return lambda: fixed_capacity_experts(x, self._gate_up, self._down, weights, ids, capacity)

    def _microseconds(self, call: Callable[[], Tensor]) -> float:
        return microseconds([call] * _CALLS, self._device)

    def _tokens(self, num_tokens: int, exponent: float) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(num_tokens, self._hidden, device=self._device, dtype=self._dtype)
        weights = x.new_full((num_tokens, self._top_k), 1 / self._top_k)
        ids = zipf_choices(num_tokens, self._experts, self._top_k, exponent)
        return x, weights, ids.to(self._device)

    def _weights(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device).normal_(0.0, 0.02)


def _line(point: Point) -> str:
    what = "dropless" if point["factor"] is None else f"capacity factor {point['factor']:g}"
    return (
        f"  {point['tokens']} tokens, exponent {point['exponent']:g}, {what}: {point['us']:.0f} us,"
        f" {point['dropped']:.1%} dropped, {point['wasted']:.1%} wasted"
    )
