"""What every rank finds true of sums in one kernel. Those that take a `Group` are called on GPUs,
by `Team.run`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dropless.ops.moe import ExpertOutputs, combine
from dropless.ops.norm import layer_norm, rms_norm
from dropless.parallel.group import Group, Norm

EPS = 1e-5
STOPPED_S = 60.0
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
SumNorm = Callable[[Norm, Tensor | ExpertOutputs, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def parts_of(seed: int, size: int, *shape: int, dtype: torch.dtype) -> Tensor:
    """[size, *shape]: every rank's part, the same on all."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *shape, generator=generator).to(dtype)


def sum_in_rank_order(parts: Tensor) -> Tensor:
    total = torch.zeros(parts.shape[1:], device=parts.device)
    for part in parts:
        total += part.float()
    return total.to(parts.dtype)


def rounds(
    count: int, size: int, limit_bytes: int, dtypes: Sequence[torch.dtype]
) -> Iterator[Tensor]:
    """Parts of all ranks, of sizes and types in random order, ends of the range among them."""
    draw = random.Random(0)
    for seed in range(count):
        dtype = draw.choice(dtypes)
        most = limit_bytes // dtype.itemsize
        numel = draw.choice([1, 7, 2048, most, draw.randrange(1, most), draw.randrange(1, 9000)])
        yield parts_of(seed, size, numel, dtype=dtype)


def norm_holds(
    sum_norm: SumNorm,
    norm: Norm,
    parts: Tensor,
    rank: int,
    device: torch.device,
    x: ExpertOutputs | None = None,
) -> None:
    """`parts`: [size, T, hidden]; x, if given, is this rank's before the sum over experts. The
    summed stream to the bit, the norm to its rounding."""
    residual, weight = parts_of(99, 2, *parts.shape[1:], dtype=parts.dtype).to(device)
    part = parts[rank].to(device) if x is None else x
    normed, summed = sum_norm(norm, part, residual, weight[0], EPS)
    expected, stream = norm.reference(sum_in_rank_order(parts).to(device), residual, weight[0], EPS)
    assert torch.equal(summed, stream)
    torch.testing.assert_close(
        normed, expected, rtol=2e-2 if parts.itemsize == 2 else 1e-5, atol=1e-5
    )


def norm_of_experts_holds(
    sum_norm: SumNorm, norm: Norm, rows: Tensor, rank: int, device: torch.device
) -> None:
    """`rows`: [size, 2 * T, hidden], what the two experts of each token made. Their weights are
    powers of two, so that sums round alike in any order; some second experts are not here."""
    num_tokens = rows.shape[1] // 2
    ids = torch.tensor([[0, 1], [2, 7]]).repeat(num_tokens, 1)[:num_tokens]
    weights = torch.tensor([0.5, 0.25], dtype=rows.dtype).repeat(num_tokens, 1)
    rows = rows.clone()
    rows[:, 3::4] = torch.nan  # of those that are not here

    def outputs(of_rank: int, device: torch.device) -> ExpertOutputs:
        made, *chosen = (part.to(device) for part in (rows[of_rank], weights, ids))
        return ExpertOutputs(made, None, *chosen, num_experts=4)

    cpu = torch.device("cpu")
    parts = torch.stack([combine.reference(outputs(peer, cpu)) for peer in range(len(rows))])
    norm_holds(sum_norm, norm, parts, rank, device, outputs(rank, device))


def check_rounds_without_a_pause(group: Group) -> None:
    """Hundreds of sums on the device before the host looks at one."""
    assert group.one_shot is not None
    device = torch.device("cuda", torch.cuda.current_device())
    everyones = list(rounds(300, group.size, 512 * 1024, DTYPES))
    mine = [parts[group.rank].to(device) for parts in everyones]
    assert all(group.one_shot.takes(x) for x in mine)
    for x in mine:
        assert group.all_reduce(x) is x
    for x, parts in zip(mine, everyones, strict=True):
        assert torch.equal(x.cpu(), sum_in_rank_order(parts))
    group.check()


def check_graph(group: Group, replays: int = 100) -> None:
    """A graph of sums of three sizes, two of them with a norm, replayed on new values."""
    device = torch.device("cuda", torch.cuda.current_device())
    hidden = 6144
    parts = [
        parts_of(tokens, group.size, replays, tokens, hidden, dtype=torch.bfloat16).to(device)
        for tokens in (1, 5, 32)
    ]
    residual, weight = parts_of(1, 2, 32, hidden, dtype=torch.bfloat16).to(device)
    inputs = [torch.empty_like(part[0, 0]) for part in parts]

    def compute() -> list[Tensor]:
        first = group.all_reduce(inputs[0].clone())
        _, second = group.all_reduce_norm(layer_norm, inputs[1], residual[:5], weight[0], EPS)
        _, third = group.all_reduce_norm(rms_norm, inputs[2], residual, weight[0], EPS)
        return [first, second, third]

    compute()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = compute()
    kept = []
    for i in range(replays):
        for x, part in zip(inputs, parts, strict=True):
            x.copy_(part[group.rank, i])
        graph.replay()
        kept.append([y.clone() for y in outputs])
    sums = [sum_in_rank_order(part) for part in parts]
    for i, (first, second, third) in enumerate(kept):
        assert torch.equal(first, sums[0][i])
        assert torch.equal(second, sums[1][i] + residual[:5])
        assert torch.equal(third, sums[2][i] + residual)
    group.check()


def check_norms(group: Group) -> None:
    """Shapes that one kernel takes, and rows that are too long or too many for it."""
    device = torch.device("cuda", torch.cuda.current_device())
    for dtype in DTYPES:
        for tokens, hidden in ((1, 6144), (20, 6144), (32, 4096), (3, 1000), (2, 9000), (300, 64)):
            parts = parts_of(tokens, group.size, tokens, hidden, dtype=dtype)
            for norm in (layer_norm, rms_norm):
                norm_holds(group.all_reduce_norm, norm, parts, group.rank, device)
        for tokens in (1, 3, 300):
            rows = parts_of(tokens, group.size, 2 * tokens, 1000, dtype=dtype)
            norm_of_experts_holds(group.all_reduce_norm, layer_norm, rows, group.rank, device)
    group.check()


def sums_on_gpus_without_end(group: Group) -> None:
    x = torch.ones(32, 6144, device="cuda", dtype=torch.bfloat16)
    while True:
        for _ in range(100):
            group.all_reduce(x)
        torch.cuda.synchronize()
        group.check()


def rank_1_stops_summing(group: Group) -> None:
    x = torch.ones(1, 6144, device="cuda")
    group.all_reduce(x)
    torch.cuda.synchronize()
    if group.rank == 1:
        time.sleep(STOPPED_S)
    group.all_reduce(x)
    torch.cuda.synchronize()
    group.check()
