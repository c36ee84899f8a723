"""What every rank finds true at the same time. Called on all ranks by `Team.run`."""

from __future__ import annotations

import time

import torch

from dropless.ops.norm import layer_norm, rms_norm
from dropless.parallel.group import Group

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)
STUCK_S = 3.0


def check_sums(group: Group) -> None:
    total = sum(range(1, group.size + 1))
    for dtype in DTYPES:
        x = torch.arange(12).view(3, 4).to(dtype)
        assert torch.equal(group.all_reduce(x * (group.rank + 1)), x * total)
    transposed = torch.arange(6.0).view(2, 3).t() * (group.rank + 1)
    assert torch.equal(group.all_reduce(transposed), torch.arange(6.0).view(2, 3).t() * total)


def check_sums_are_the_same_bits_on_every_rank(group: Group) -> None:
    """Or ranks would disagree on which experts a token goes to."""
    generator = torch.Generator().manual_seed(group.rank)
    for size in (1, 7, 1000, 100_000):
        x = group.all_reduce(torch.randn(1, size, generator=generator))
        everyones = group.all_gather(x, 0)
        assert torch.equal(everyones, everyones[:1].expand_as(everyones))


def check_sums_in_order(group: Group) -> None:
    """An element's bits do not depend on its place, nor on how many there are."""
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(group.rank)
        x = torch.randn(700, 9, generator=generator).to(dtype)
        total = torch.zeros(700, 9)
        for part in group.all_gather(x, 0).split(700):
            total += part.float()
        for rows in (slice(0, 1), slice(3, 4), slice(5, 200), slice(0, 700)):
            mine = x[rows].clone()
            assert torch.equal(group.all_reduce_in_order(mine), total[rows].to(dtype))


def check_sums_with_a_norm(group: Group) -> None:
    everyones = torch.randn(group.size, 3, 8, generator=torch.Generator().manual_seed(1))
    residual, weight = torch.full((3, 8), 0.5), torch.arange(8.0)
    for norm in (layer_norm, rms_norm):
        x = everyones[group.rank].clone()
        normed, summed = group.all_reduce_norm(norm, x, residual, weight, 1e-5)
        expected, stream = norm(everyones.sum(0), residual, weight, 1e-5)
        torch.testing.assert_close(summed, stream)
        torch.testing.assert_close(normed, expected)


def check_gathering(group: Group) -> None:
    whole = torch.randn(4, 6, 2 * group.size, generator=torch.Generator().manual_seed(0))
    for dim in (-1, 2):
        start, length = group.slice_of(whole.shape[dim], "columns")
        mine = whole.narrow(dim, start, length)
        assert torch.equal(group.all_gather(mine, dim), whole)
    rows = whole.permute(2, 0, 1)
    start, length = group.slice_of(rows.shape[0], "rows")
    assert torch.equal(group.all_gather(rows[start : start + length], 0), rows)
    with torch.inference_mode():
        ids = torch.tensor([[group.rank]])
        assert group.all_gather(ids).tolist() == [list(range(group.size))]


def check_broadcast(group: Group) -> None:
    for dtype in DTYPES:
        expected = torch.arange(12).view(3, 4).to(dtype)
        x = expected.clone() if group.rank == 0 else torch.full_like(expected, -1)
        assert group.broadcast(x) is x
        assert torch.equal(x, expected)
        columns = (expected if group.rank == 0 else -expected).t()
        assert torch.equal(group.broadcast(columns), expected.t())
    with torch.inference_mode():
        ids = torch.tensor([7 * (group.rank + 1)])
        assert group.broadcast(ids).tolist() == [7]


def check_on_gpus(group: Group) -> None:
    """Both ways of summing there are on GPUs, and a broadcast in a graph that is replayed."""
    with torch.device("cuda", torch.cuda.current_device()):
        check_sums(group)
        check_broadcast(group)
        ids = torch.zeros(4, dtype=torch.int64)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            group.broadcast(ids)
        for step in range(3):
            ids.fill_(10 * step + group.rank)
            graph.replay()
            assert ids.tolist() == [10 * step] * 4
    group.check()


def rank_1_fails(group: Group) -> None:
    if group.rank == 1:
        raise ZeroDivisionError("rank 1 has a bug")
    group.all_reduce(torch.ones(1))


def sums_without_end(group: Group) -> None:
    while True:
        group.all_reduce(torch.ones(1))


def rank_1_is_stuck(group: Group) -> None:
    if group.rank == 1:
        time.sleep(STUCK_S)
    group.all_reduce(torch.ones(1))
