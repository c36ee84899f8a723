"""Sums between the GPUs of one host: NCCL beside one kernel, and the residual and norm after them.

    python benchmarks/all_reduce.py

One process a GPU, on all that are visible. Rows of DBRX (6144 bfloat16s, 12 KiB) for several batch
sizes; every case is a CUDA graph of 50 in a row, and a time is the median over replays divided by
50. "back to back" has nothing between two sums; "in a step" copies 64 MiB before each, as weights
stream through the cache between two sums of a model, and subtracts what the copies take alone. The
limit is the time in which NCCL moves as many bytes as a rank must receive, at its rate for 256 MiB.
Writes results/all_reduce.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import torch
import triton
from torch import Tensor

from dropless.ops.norm import layer_norm
from dropless.ops.triton.all_reduce import all_reduce_, all_reduce_norm
from dropless.parallel.group import Group

RESULTS = Path(__file__).parent / "results"
HIDDEN = 6144
TOKENS = (1, 2, 4, 8, 16, 32, 42, 64, 96, 128, 170)
IN_A_ROW, REPLAYS, LARGE = 50, 20, 2**28
EPS = 1e-5

Case = Callable[[], object]


def microseconds(case: Case, before: Case | None = None) -> float:
    """Of one `case` in a graph of many, `before` and `case` in turn."""

    def compute() -> None:
        for _ in range(IN_A_ROW):
            if before is not None:
                before()
            case()

    compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / IN_A_ROW)
    return statistics.median(times)


def cases_of(group: Group, nccl: Group, tokens: int) -> dict[str, Case]:
    """Each sums zeros, which stay so however often they are summed."""
    assert group.one_shot is not None
    ring = group.one_shot.ring
    x = torch.zeros(tokens, HIDDEN, dtype=torch.bfloat16, device="cuda")
    residual, weight = torch.randn_like(x), torch.randn_like(x[0])

    def norm(summed: Tensor) -> object:
        return layer_norm(summed, residual, weight, EPS)

    return {
        "nccl": lambda: nccl.all_reduce(x),
        "one_shot": lambda: all_reduce_(x, ring),
        "norm": lambda: norm(x),
        "nccl_then_norm": lambda: norm(nccl.all_reduce(x)),
        "one_shot_then_norm": lambda: norm(all_reduce_(x, ring)),
        "fused": lambda: all_reduce_norm(x, residual, weight, EPS, ring, centred=True),
    }


def check(group: Group, tokens: int) -> None:
    assert group.one_shot is not None
    x = torch.full((tokens, HIDDEN), group.rank + 1.0, dtype=torch.bfloat16, device="cuda")
    total = sum(range(1, group.size + 1))
    assert torch.equal(all_reduce_(x, group.one_shot.ring), torch.full_like(x, total))


def link_bytes_per_us(nccl: Group) -> float:
    """What a rank receives in a microsecond of a large sum."""
    x = torch.zeros(LARGE // 2, dtype=torch.bfloat16, device="cuda")
    received = 2 * (nccl.size - 1) / nccl.size * x.nbytes
    return received / microseconds(lambda: nccl.all_reduce(x))


def measure(group: Group) -> list[dict[str, float]]:
    nccl = Group(group.rank, group.size, group.backend)
    rate = link_bytes_per_us(nccl)
    weights, copied = (torch.zeros(2**26, dtype=torch.uint8, device="cuda") for _ in "wc")

    def stream() -> object:
        return copied.copy_(weights)

    stream_us = microseconds(stream)
    rows = []
    for tokens in TOKENS:
        check(group, tokens)
        num_bytes = tokens * HIDDEN * 2
        row = {"tokens": tokens, "kib": num_bytes / 1024}
        row["limit_us"] = (group.size - 1) * num_bytes / rate
        for name, case in cases_of(group, nccl, tokens).items():
            row[f"{name}_back_to_back_us"] = microseconds(case)
            row[f"{name}_in_a_step_us"] = microseconds(case, stream) - stream_us
        rows.append(row)
        if group.rank == 0:
            print_row(row)
    group.check()
    return rows


NAMES = ("nccl", "one_shot", "nccl_then_norm", "one_shot_then_norm", "fused")


def print_row(row: dict[str, float]) -> None:
    if row["tokens"] == TOKENS[0]:
        print("microseconds, back to back / in a step")
        print(f"{'KiB':>6} {'limit':>6} " + " ".join(f"{name:>20}" for name in NAMES))
    times = (
        f"{row[f'{name}_back_to_back_us']:9.1f} / {row[f'{name}_in_a_step_us']:8.1f}"
        for name in NAMES
    )
    print(f"{row['kib']:6.0f} {row['limit_us']:6.2f} " + " ".join(times), flush=True)


def run_rank(rank: int, size: int, folder: Path, out: Path) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    group = Group.join(rank, size, device, folder, timeout_s=60.0)
    if group.one_shot is None:
        raise SystemExit("these GPUs cannot address each other's memory: nothing to compare")
    rows = measure(group)
    if rank > 0:
        return
    document = {
        "gpu": torch.cuda.get_device_name(),
        "num_gpus": size,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "all_reduce.json")
    out = parser.parse_args().out
    size = torch.cuda.device_count()
    if size < 2:
        parser.error(f"needs at least two GPUs, and {size} are visible")
    with tempfile.TemporaryDirectory() as folder:
        spawn = get_context("spawn").Process
        ranks = [
            spawn(target=run_rank, args=(rank, size, Path(folder), out)) for rank in range(size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
    if any(process.exitcode for process in ranks):
        parser.exit(1, "a rank failed; its error is above\n")


if __name__ == "__main__":
    main()
