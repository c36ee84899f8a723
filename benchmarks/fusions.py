"""Kernels of a layer that were made one, beside those that they were made of.

    python -m benchmarks.fusions --quantization fp8                         4 layers of DBRX
    python -m benchmarks.fusions --quantization fp8 --slice-of 8 --layers 40   a rank's part of 8

Generated weights; sequences of 576 tokens that get one more, and prompts of 512 of which steps of
so many tokens consist. For each size every variant is captured as a CUDA graph of the whole step
(embedding to last norm); then the graphs take turns, each replayed for at least `--seconds`, in
`--rounds` rounds. A variant is what was before with one change, or with all. The figure is the
middle of the rounds, and beside it what a layer gains over "before", in microseconds. The hidden
states are compared with those of "before" as well: equal bits, or ||a - b|| / ||b||.

Writes results/fusions.json beside this script, or `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from benchmarks.machine import machine
from torch import Tensor

from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.resolve import resolve
from dropless.layers.batch import ForwardBatch
from dropless.models.decoder import CausalLM
from dropless.models.registry import load_model
from dropless.ops.attention import PagedBatch, rotary_attention, rotate_then_attend
from dropless.ops.attention_linear import attend_then_multiply, attention_linear
from dropless.ops.moe import ExpertOutputs, combined, unsummed_experts
from dropless.ops.norm import layer_norm
from dropless.ops.norm_linear import norm_linear, norm_then_linear
from dropless.ops.norm_route import norm_route, norm_then_route
from dropless.ops.triton import attention as attention_module
from dropless.ops.triton import linear as linear_module
from dropless.ops.triton import router as router_module
from dropless.ops.triton.launch import after_previous, early_launch, warps_of_row
from dropless.ops.triton.moe import unsummed_experts_cuda
from dropless.ops.triton.norm import norm_of
from dropless.ops.triton.router import _choose, _held, _router_part
from dropless.parallel.group import Group

RESULTS = Path(__file__).parent / "results"
DEVICE = torch.device("cuda", 0)
CONTEXT, PROMPT, BLOCK_SIZE = 576, 512, 16
EPS = 1e-5

Run = Callable[[], Tensor]


# What was before


@triton.jit
def _norm_before_kernel(
    x_ptr, residual_ptr, weight_ptr, normed_ptr, summed_ptr, hidden, eps,
    HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    after_previous(EARLY)
    row = tl.program_id(0).to(tl.int64) * hidden
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    x = tl.load(x_ptr + row + columns, inside, 0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row + columns, inside, 0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(summed_ptr + row + columns, x, inside)
    weight = tl.load(weight_ptr + columns, inside, 0.0)
    normed = norm_of(x.to(tl.float32), weight, inside, hidden, eps, True)
    tl.store(normed_ptr + row + columns, normed, inside)


def layer_norm_before(
    x: Tensor | ExpertOutputs, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The weight is read last, and experts' outputs are summed by a kernel of their own."""
    x = combined(x).contiguous()
    normed = torch.empty_like(x)
    summed = x if residual is None else torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _norm_before_kernel[(len(x),)](
        x, x if residual is None else residual, weight, normed, summed, x.shape[1], eps,
        HAS_RESIDUAL=residual is not None, BLOCK=block, num_warps=warps_of_row(block),
        **early_launch(x),
    )  # fmt: skip
    return normed, summed


@triton.jit(do_not_specialize=["num_tokens"])
def _route_before_kernel(
    x_ptr, router_ptr, weights_ptr, ids_ptr, num_tokens, hidden, num_experts, norm_p,
    TOP_K: tl.constexpr, CHOICES: tl.constexpr, EXPERTS: tl.constexpr, HAS_NORM: tl.constexpr,
    STEPS: tl.constexpr, HELD: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Each part of x is loaded when the product before has ended."""
    token = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    held = _held(router_ptr, experts, hidden, num_experts, HELD, DEPTH)
    after_previous(EARLY)
    total = tl.zeros([EXPERTS, DEPTH], tl.float32)
    for step in tl.static_range(STEPS):
        depth = step * DEPTH + tl.arange(0, DEPTH)
        x = tl.load(x_ptr + token.to(tl.int64) * hidden + depth, depth < hidden, 0.0)
        if step < HELD:
            router = held[step]
        else:
            router = _router_part(router_ptr, experts, step, hidden, num_experts, DEPTH)
        total += router.to(tl.float32) * x.to(tl.float32)[None, :]
    scores = tl.sum(total, 1).to(x_ptr.dtype.element_ty).to(tl.float32)
    _choose(
        scores[None, :], token + tl.arange(0, 1), num_tokens, num_experts, weights_ptr, ids_ptr,
        norm_p, TOP_K, CHOICES, EXPERTS, HAS_NORM,
    )  # fmt: skip


def summed_experts_before(*arguments: Any) -> Tensor:
    return combined(unsummed_experts_cuda(*arguments))


def norm_linear_of_one(x: Tensor | ExpertOutputs, *arguments: Any, **named: Any) -> Any:
    """With the norm inside for one token; of more tokens as before."""
    version = NEW["norm_linear"] if x.shape[0] == 1 else norm_then_linear
    return version(x, *arguments, **named)


NEW: dict[str, Callable[..., Any]] = {
    "layer_norm": layer_norm.versions["cuda"],
    "norm_linear": norm_linear.versions["cuda"],
    "norm_route": norm_route.versions["cuda"],
    "unsummed_experts": unsummed_experts.versions["cuda"],
    "attention_linear": attention_linear.versions["cuda"],
    "rotary_attention": rotary_attention.versions["cuda"],
}
CHANGES = (
    "weight",  # the norm's weight is on its way before the kernel before has ended
    "sum",  # the sum over experts is made by the norm that follows
    "quantise",  # a norm quantises for qkv, and for the experts
    "vector",  # one token's norm is made in qkv's product
    "loads",  # all of a token is on its way before the router's first product
    "router",  # as "loads", and the norm is made, and quantised, in the router's kernel
    "grouping",  # as "router", which groups the pairs, too
    "attention",  # single queries are rotated where they attend
    "output",  # as "attention", and what comes of them is quantised there
    "near",  # as "attention", and keys and values are fetched before the kernel before has ended
)


@contextmanager
def changed(*changes: str) -> Iterator[None]:
    """What was before, with these changes."""
    router = {"router", "grouping"} & set(changes)
    quantises = "quantise" in changes
    norm_linear_version = norm_then_linear if not quantises else NEW["norm_linear"]
    if "vector" in changes and not quantises:
        norm_linear_version = norm_linear_of_one
    values: list[tuple[Any, str, Any]] = [
        (attention_module, "_NEAR", 128 if "near" in changes else 0),
        (linear_module, "_NORMING_PROGRAMS", 4 * 132 if "vector" in changes else 0),
        (router_module, "_NORMED_TOKENS", 128 if router else 0),
        (router_module, "_GROUPED_TOKENS", 128 if "grouping" in changes else 0),
    ]
    sums, rotates = "sum" in changes, "attention" in changes
    new_norm = "weight" in changes or sums
    if not {"loads", "router", "grouping"} & set(changes):
        values.append((router_module, "_route_token_kernel", _route_before_kernel))
    versions: list[tuple[dict[str, Any], Callable[..., Any]]] = [
        (layer_norm.versions, NEW["layer_norm"] if new_norm else layer_norm_before),
        (norm_linear.versions, norm_linear_version),
        (norm_route.versions, NEW["norm_route"] if router or quantises else norm_then_route),
        (unsummed_experts.versions, NEW["unsummed_experts"] if sums else summed_experts_before),
        (rotary_attention.versions, NEW["rotary_attention"] if rotates else rotate_then_attend),
        (
            attention_linear.versions,
            NEW["attention_linear"] if "output" in changes else attend_then_multiply,
        ),
    ]
    with ExitStack() as stack:
        for owner, name, value in values:
            stack.enter_context(patched(owner, name, value))
        for table, version in versions:
            stack.callback(table.__setitem__, "cuda", table["cuda"])
            table["cuda"] = version
        yield


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# Measuring


@dataclass(frozen=True)
class Captured:
    replay: Callable[[], None]
    out: Tensor


def capture(run: Run, pool: Any) -> Captured:
    run()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = run()
    return Captured(graph.replay, out)


def microseconds(captured: Captured, count: int) -> float:
    """Of one replay, of so many in a row."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
    begin.record()
    for _ in range(count):
        captured.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3 / count


def take_turns(
    graphs: Mapping[str, Captured], seconds: float, rounds: int
) -> dict[str, list[float]]:
    """Microseconds of a replay of each, in each round, in which it is busy for so many seconds."""
    counts = {}
    for name, captured in graphs.items():  # and the clocks settle
        microseconds(captured, 3)
        counts[name] = max(3, round(seconds * 1e6 / microseconds(captured, 5)) + 1)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, captured in graphs.items():
            times[name].append(microseconds(captured, counts[name]))
    return times


def difference(a: Tensor, b: Tensor) -> float:
    """0.0 for equal bits."""
    assert torch.isfinite(a).all()
    if torch.equal(a, b):
        return 0.0
    return float((a.float() - b.float()).norm() / b.float().norm())


def table_row(
    graphs: Mapping[str, Captured], arguments: argparse.Namespace, per: int
) -> dict[str, Any]:
    """Times and differences by name, the first of which is "before"; `per` what one has of."""
    results = {}
    outs = {}
    for name, captured in graphs.items():
        captured.replay()
        outs[name] = captured.out.clone()
    times = take_turns(graphs, arguments.seconds, arguments.rounds)
    before = statistics.median(times["before"])
    for name, rounds in times.items():
        middle = statistics.median(rounds)
        results[name] = {
            "us": [round(us, 2) for us in rounds],
            "gain_us": round((before - middle) / per, 3),
            "gain": round(1.0 - middle / before, 5),
            "difference": difference(outs[name], outs["before"]),
        }
        print(
            f"    {name:22s} {middle:11.1f} us, gains {(before - middle) / per:7.2f} us of"
            f" {before / per:8.1f} ({1.0 - middle / before:+.2%}),"
            f" difference {results[name]['difference']:.1e}",
            flush=True,
        )
    return results


# Steps of a model


def sequences(
    queries: int, length: int, count: int, caches: list[tuple[Tensor, Tensor]]
) -> ForwardBatch:
    """`count` sequences of `length` tokens, of which the last `queries` are computed."""
    blocks = -(-length // BLOCK_SIZE)
    tables = torch.arange(count * blocks, dtype=torch.int32, device=DEVICE).view(count, blocks)
    places = torch.arange(length - queries, length, device=DEVICE)
    slots = tables.long()[:, places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE
    paged = PagedBatch(
        slot_mapping=slots.flatten(),
        block_tables=tables,
        query_start=torch.arange(count + 1, dtype=torch.int32, device=DEVICE) * queries,
        seq_lens=torch.full((count,), length, dtype=torch.int32, device=DEVICE),
        num_decodes=count if queries == 1 else 0,
        num_chunks=0 if queries == 1 else count,
        query_lens_host=[queries] * count,
        seq_lens_host=[length] * count,
    )
    ids = torch.randint(10_000, (count * queries,), device=DEVICE)
    return ForwardBatch(ids, places.repeat(count), paged, caches)


def make_caches(model: CausalLM, ranks: int, num_blocks: int) -> list[tuple[Tensor, Tensor]]:
    config = model.config
    shape = (num_blocks, BLOCK_SIZE, config.num_kv_heads // ranks, config.head_dim)
    return [(_noise(*shape), _noise(*shape)) for _ in range(config.num_layers)]


def compile_all(runs: list[Run], variants: Mapping[str, tuple[str, ...]]) -> None:
    """Every size at a time, as compilers run side by side."""

    def compile_one(run: Run) -> None:
        with torch.inference_mode():
            run()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for changes in variants.values():
            with changed(*changes):
                list(pool.map(compile_one, runs))
    torch.cuda.synchronize()


def _noise(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) * scale


def steps(model: CausalLM, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    variants: dict[str, tuple[str, ...]] = {"before": ()}
    if not arguments.together:
        variants |= {f"+ {change}": (change,) for change in CHANGES}
    variants |= {"all": CHANGES}
    kinds = [(1, CONTEXT, batch) for batch in _numbers(arguments.batches)]
    kinds += [(PROMPT, PROMPT, tokens // PROMPT) for tokens in _numbers(arguments.prefill)]
    num_blocks = max(-(-length // BLOCK_SIZE) * count for _, length, count in kinds)
    caches = make_caches(model, arguments.slice_of, num_blocks)
    batches = [sequences(*kind, caches) for kind in kinds]
    compile_all([_step(model, batch) for batch in batches], variants)
    for (queries, _, count), batch in zip(kinds, batches, strict=True):
        kind = "decode" if queries == 1 else "prefill"
        print(f"{kind}, {queries * count} tokens, {arguments.quantization}", flush=True)
        pool = torch.cuda.graph_pool_handle()
        graphs = {}
        for name, changes in variants.items():
            with changed(*changes):
                graphs[name] = capture(_step(model, batch), pool)
        results = table_row(graphs, arguments, model.config.num_layers)
        rows.append({"kind": kind, "tokens": queries * count, "variants": results})
        batch.paged._derived.clear()
        del graphs, pool
        torch.cuda.empty_cache()
    return rows


def _step(model: CausalLM, batch: ForwardBatch) -> Run:
    def run() -> Tensor:
        batch.paged._derived.clear()  # plans are part of a step
        return model(batch)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quantization", default="none", choices=["none", "fp8"])
    parser.add_argument("--slice-of", type=int, default=1, help="ranks of which one is computed")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batches", default="1,8,32,256", help="decoding sequences")
    parser.add_argument("--prefill", default="2048,4096", help="tokens of a step")
    parser.add_argument("--together", action="store_true", help="no change alone")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "fusions.json")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with torch.inference_mode():
        rows = steps(_model(arguments), arguments)
    document = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        **machine(),
        "quantization": arguments.quantization,
        "slice_of": arguments.slice_of,
        "layers": arguments.layers,
        "seconds": arguments.seconds,
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _model(arguments: argparse.Namespace) -> CausalLM:
    shape = json.loads((resolve("dbrx", allow_shapes=True) / "config.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        config = {**shape, "n_layers": arguments.layers}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return load_model(
            open_checkpoint(Path(folder), "random"),
            dtype=torch.bfloat16,
            device=DEVICE,
            group=Group(0, arguments.slice_of),
            quantization=arguments.quantization,
        )


if __name__ == "__main__":
    main()
