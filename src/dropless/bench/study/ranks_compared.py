"""Part parallel: one layer's experts on two ranks, each expert's width shared or experts whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dropless.bench.study.models import config_of
from dropless.bench.study.options import Options
from dropless.bench.study.records import append, machine
from dropless.bench.study.routing import shifted_choices
from dropless.bench.study.timing import microseconds, tune_tiles
from dropless.errors import SettingsError
from dropless.models.registry import parse_config
from dropless.ops.moe import fused_experts
from dropless.parallel.group import Group
from dropless.parallel.rank_messages import STARTED, Place, Reached
from dropless.parallel.rank_processes import RankProcesses

PART = "parallel"
RANKS = 2
SHARES = (0.5, 0.625, 0.75, 1.0)  # of all pairs of a token and an expert: those on rank 0
PLANS = ("tensor", "expert")
TOKENS = (1, 8, 32, 128, 512, 2048, 8192)
TINY_TOKENS = (1, 16)

_MEASURED = "measured"


def run(options: Options, folder: Path) -> None:
    """
    Raises:
        SettingsError: fewer than two GPUs.
        EngineError: a rank failed.
    """
    if not options.tiny and torch.cuda.device_count() < RANKS:
        raise SettingsError(
            f"part {PART} needs {RANKS} GPUs and PyTorch sees {torch.cuda.device_count()}"
        )
    minutes_left = max(0.0, options.deadline - time.monotonic()) / 60
    ranks = RankProcesses(RANKS, _follow, (options.tiny, minutes_left))
    try:
        ranks.wait_for(STARTED)
        group = _join(0, ranks.folder, options.tiny)
        ranks.on_failure = group.abort
        rows = _measure(group, options.tiny, minutes_left, options.say)
        ranks.wait_for(_MEASURED)
    finally:
        ranks.close()
    record = {"machine": machine(options.device, RANKS), "tiny": options.tiny, "rows": rows}
    options.say(f"kept in {append(folder, PART, f'{RANKS}-ranks', record)}")


def _follow(place: Place, tiny: bool, minutes: float) -> None:
    """The program of rank 1."""
    group = _join(place.rank, place.folder, tiny)
    _measure(group, tiny, minutes, lambda _: None)
    place.link.send(Reached(_MEASURED))
    place.link.recv_bytes()  # until it is killed


def _join(rank: int, folder: Path, tiny: bool) -> Group:
    if tiny:
        torch.set_num_threads(1)
        return Group.join(rank, RANKS, torch.device("cpu"), folder)
    torch.cuda.set_device(rank)
    return Group.join(rank, RANKS, torch.device("cuda", rank), folder)


@torch.inference_mode()
def _measure(
    group: Group, tiny: bool, minutes: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """All ranks call this at once and go the same way: rank 0 says when time is up."""
    deadline = time.monotonic() + 60.0 * minutes
    layer = _Layer(group, tiny)
    rows = []
    for num_tokens in TINY_TOKENS if tiny else TOKENS:
        for share in SHARES:
            is_late = torch.tensor([float(time.monotonic() > deadline)], device=layer.device)
            if group.broadcast(is_late).item():
                say(f"no time left for {num_tokens} tokens, share {share}")
                continue
            us = {
                plan: layer.microseconds(plan, num_tokens, share) for plan in ("tensor", "expert")
            }
            rows.append({"tokens": num_tokens, "share": share, **us})
            say(
                f"{num_tokens} tokens, {share:.0%} on rank 0: tensor parallel"
                f" {us['tensor']:.0f} us, expert parallel {us['expert']:.0f} us"
            )
    group.check()
    return rows


class _Layer:
    """A rank's part of one layer's experts under both plans, the sum over ranks included."""

    def __init__(self, group: Group, tiny: bool) -> None:
        config = parse_config(config_of("dbrx", tiny=tiny))
        self.device = "cpu" if tiny else "cuda"
        self._group = group
        self._experts, self._top_k = config.num_experts, config.top_k
        self._hidden = config.hidden_size
        self._dtype = torch.float32 if tiny else torch.bfloat16
        own_experts, width = self._experts // RANKS, config.ffn_width
        self._first = {"tensor": 0, "expert": group.rank * own_experts}
        self._weights = {
            "tensor": self._make(self._experts, width // RANKS),
            "expert": self._make(own_experts, width),
        }

    def microseconds(self, plan: str, num_tokens: int, share: float) -> float:
        """The slower rank's."""
        gate_up, down = self._weights[plan]
        x = torch.randn(num_tokens, self._hidden, device=self.device, dtype=self._dtype)
        topk_weights = x.new_full((num_tokens, self._top_k), 1 / self._top_k)
        ids = shifted_choices(num_tokens, self._experts, self._top_k, share).to(x.device)
        ids = ids - self._first[plan]

        def experts() -> Tensor:
            return fused_experts(x, gate_up, down, topk_weights, ids)

        tune_tiles(experts, self.device)
        taken = microseconds(lambda: self._group.all_reduce(experts()), self.device)
        return float(self._group.all_gather(torch.tensor([taken], device=self.device)).max())

    def _make(self, experts: int, width: int) -> tuple[Tensor, Tensor]:
        def weights(*shape: int) -> Tensor:
            empty = torch.empty(shape, dtype=self._dtype, device=self.device)
            return empty.normal_(0.0, 0.02)

        down = weights(experts, width, self._hidden).mT  # as DBRX stores it
        return weights(experts, 2 * width, self._hidden), down
