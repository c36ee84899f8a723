"""Part parallel: one layer's experts on two ranks, each expert's width shared or experts whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dropless.bench.study.data import Results, machine
from dropless.bench.study.models import config_of
from dropless.bench.study.progress import say
from dropless.bench.study.routing import shifted_choices
from dropless.bench.study.settings import Options, Scale
from dropless.bench.study.timing import microseconds, tune_tiles
from dropless.models.registry import parse_config
from dropless.ops.moe import fused_experts
from dropless.parallel.group import Group
from dropless.parallel.rank_messages import STARTED, Place
from dropless.parallel.rank_processes import RankProcesses

PART = "parallel"
SHARES = (0.5, 0.625, 0.75, 1.0)  # of all pairs of a token and an expert: those on rank 0
PLANS = ("tensor", "expert")
_RANKS = 2
_DRAWS = 10  # of routing, each computed once a round
_TUNED_TOKENS = 8


def run(options: Options) -> None:
    """
    Raises:
        SettingsError: fewer than two GPUs.
        EngineError: a rank failed.
    """
    scale = options.scale
    about = {"part": PART, "ranks": _RANKS, **machine(scale.device, _RANKS)}
    results = Results(options.data / f"{PART}.json", about)
    ranks = RankProcesses(_RANKS, _follow, (scale,))
    try:
        ranks.wait_for(STARTED)
        group = _join(0, ranks.folder, scale)
        ranks.on_failure = group.abort
        _lead(group, options, results)
    finally:
        ranks.close()
    say(f"kept in {results.path}")


def _lead(group: Group, options: Options, results: Results) -> None:
    """The program of rank 0, which tells the other what comes next."""
    layer = _Layer(group, options.scale)
    for num_tokens in options.scale.parallel_tokens:
        for share in SHARES:
            if results.has(tokens=num_tokens, share=share):
                continue
            if options.is_late:
                say(f"no time left for {num_tokens} tokens, share {share:g}")
                return
            layer.announce(num_tokens, share)
            us = {plan: layer.microseconds(plan, num_tokens, share) for plan in PLANS}
            group.check()
            results.add({"tokens": num_tokens, "share": share, **us})
            say(
                f"  {num_tokens} tokens, {share:.1%} on one rank: tensor parallel"
                f" {us['tensor']:.0f} us, expert parallel {us['expert']:.0f} us"
            )
    results.complete()


def _follow(place: Place, scale: Scale) -> None:
    """The program of rank 1, until it is killed."""
    layer = _Layer(_join(place.rank, place.folder, scale), scale)
    while True:
        num_tokens, share = layer.announce(0, 0.0)
        for plan in PLANS:
            layer.microseconds(plan, num_tokens, share)


def _join(rank: int, folder: Path, scale: Scale) -> Group:
    if scale.device == "cpu":
        torch.set_num_threads(1)
        return Group.join(rank, _RANKS, torch.device("cpu"), folder)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    return Group.join(rank, _RANKS, device, folder)


class _Layer:
    """A rank's part of one layer's experts under both plans, the sum over ranks included."""

    def __init__(self, group: Group, scale: Scale) -> None:
        config = parse_config(config_of("dbrx", tiny=scale.is_tiny))
        self._group = group
        self._device = scale.device
        self._dtype = torch.float32 if scale.is_tiny else torch.bfloat16
        self._experts, self._top_k = config.num_experts, config.top_k
        self._hidden = config.hidden_size
        own_experts, width = self._experts // _RANKS, config.ffn_width
        self._first = {"tensor": 0, "expert": group.rank * own_experts}
        self._weights = {
            "tensor": self._make(self._experts, width // _RANKS),
            "expert": self._make(own_experts, width),
        }
        for plan in PLANS:
            tune_tiles(self._call(plan, _TUNED_TOKENS, 0.5, draw=0), self._device)

    def announce(self, num_tokens: int, share: float) -> tuple[int, float]:
        """What rank 0 says, on every rank."""
        said = torch.tensor([num_tokens, share], device=self._device, dtype=torch.float64)
        tokens, part = self._group.broadcast(said).tolist()
        return int(tokens), part

    @torch.inference_mode()
    def microseconds(self, plan: str, num_tokens: int, share: float) -> float:
        """The slower rank's."""
        experts = [self._call(plan, num_tokens, share, draw) for draw in range(_DRAWS)]
        calls = [self._summed(call) for call in experts]
        taken = torch.tensor([microseconds(calls, self._device, self._align)], device=self._device)
        return float(self._group.all_gather(taken).max())

    def _align(self) -> None:
        self._group.all_reduce(torch.zeros(1, device=self._device))

    def _call(self, plan: str, num_tokens: int, share: float, draw: int) -> Callable[[], Tensor]:
        """This rank's experts of tokens that are routed by a draw of their own."""
        gate_up, down = self._weights[plan]
        x = torch.randn(num_tokens, self._hidden, device=self._device, dtype=self._dtype)
        topk_weights = x.new_full((num_tokens, self._top_k), 1 / self._top_k)
        ids = shifted_choices(num_tokens, self._experts, self._top_k, share, draw)
        own = ids.to(self._device) - self._first[plan]
        return lambda: fused_experts(x, gate_up, down, topk_weights, own)

    def _summed(self, experts: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: self._group.all_reduce(experts())

    def _make(self, experts: int, width: int) -> tuple[Tensor, Tensor]:
        def weights(*shape: int) -> Tensor:
            empty = torch.empty(shape, dtype=self._dtype, device=self._device)
            return empty.normal_(0.0, 0.02)

        down = weights(experts, width, self._hidden).mT  # as DBRX stores it
        return weights(experts, 2 * width, self._hidden), down
