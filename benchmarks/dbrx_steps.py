"""DBRX on GPUs with generated weights: the time of a decode step against its limit, and prefill.

    python benchmarks/dbrx_steps.py --layers 8 --batches 1,8,64,256     a cut model on one GPU
    python benchmarks/dbrx_steps.py --slice-of 8 --batches 1,32,128     one rank's part of eight
    python benchmarks/dbrx_steps.py --ranks 2 --batches 1,8,32,128      the whole on two GPUs

Prompts of 512 random token ids, 128 output tokens, greedy, prefix cache off, through the offline
engine; step time = (time for 129 tokens - time for 1) / 128, prefill = prompt tokens / time for 1.
The limit is the time to read at measured copy bandwidth what a rank must read once a step: all
weights outside the experts, the experts that a batch hits on average if routing is even, and the
keys and values in the middle of the run (`dropless.bench.roofline`). The limit of prefill is the
time of its operations at the rate of PyTorch's products of large random matrices, after some tenths
of a second of the same. `--slice-of N` computes what one of N
tensor-parallel ranks does, without its collectives. `--deterministic` turns that setting on, to be
compared with a run without. `--profile` shows the kernels of a step and how long the
device idles. Writes results/dbrx_steps.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import torch
import triton
from torch import Tensor
from torch._C._autograd import DeviceType

from dropless.bench.gpus import Precision
from dropless.bench.roofline import Layout, Shape, Tokens, prefill_steps, step_work
from dropless.bench.slice_engine import slice_engine
from dropless.checkpoints.resolve import resolve
from dropless.engine.build import build_engine
from dropless.engine.config import EngineConfig
from dropless.engine.engine import Engine
from dropless.engine.messages import EngineRequest
from dropless.engine.sampling_params import SamplingParams
from dropless.layers.weights import WeightFormat
from dropless.models.registry import parse_config
from dropless.ops.fp8 import quantize_tokens

RESULTS = Path(__file__).parent / "results"
INPUT, OUTPUT = 512, 128
MAX_LEN = 2048
BUDGET = 8192  # tokens of a step


@dataclass(frozen=True)
class Ceilings:
    """What the GPU does at best."""

    bandwidth: float  # bytes a second that are copied, read and written
    rates: dict[Precision, float]  # operations a second of large products

    @classmethod
    def measured(cls) -> Ceilings:
        """By a process that ends, or what libraries keep for it would take memory from the model: a
        large batch needs all for its cache."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return cls(pool.submit(copy_bandwidth).result(), pool.submit(matrix_rates).result())


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a large copy; the best of several."""
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    moved = 2 * source.nbytes
    del source, target
    torch.cuda.empty_cache()  # what a library keeps after this must not lie in this memory
    return moved / min(times)


def matrix_rates() -> dict[Precision, float]:
    """Operations a second of large products, after others: in the first moments it is more."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    (a8, a_scales), (b8, b_scales) = quantize_tokens(a), quantize_tokens(b)

    def in_8_bits() -> Tensor:
        return torch._scaled_mm(
            a8, b8.t(), a_scales[:, None], b_scales[None, :], out_dtype=a.dtype, use_fast_accum=True
        )

    runs: dict[Precision, Callable[[], Tensor]] = {"none": lambda: a @ b.t(), "fp8": in_8_bits}
    rates: dict[Precision, float] = {}
    for precision, run in runs.items():
        for count in (300, 150):  # of which the last ones count
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
            begin.record()
            for _ in range(count):
                run()
            end.record()
            torch.cuda.synchronize()
            rates[precision] = count * 2 * size**3 / (begin.elapsed_time(end) / 1e3)
    return rates


def prefill_limit(
    shape: Shape, batch: int, ranks: int, quantization: Precision, rates: dict[Precision, float]
) -> float:
    """Tokens a second, if one rank's operations were all."""
    layout = Layout(ranks, quantization, has_collectives=False)
    seconds = sum(
        part.operations / rates[part.precision]
        for tokens in prefill_steps(batch, INPUT, BUDGET)
        for part in step_work(shape, layout, tokens).parts.values()
    )
    return batch * INPUT / seconds


def step_bytes(shape: Shape, batch: int, ranks: int, quantization: Precision) -> float:
    """What one decoding step of one rank must read."""
    layout = Layout(ranks, quantization, has_collectives=False)
    return step_work(shape, layout, Tokens.decode(batch, INPUT + OUTPUT / 2)).num_bytes


@contextmanager
def whole_engine(
    folder: str, ranks: int, quantization: WeightFormat, rows: int, *, deterministic: bool = False
) -> Iterator[tuple[Engine, float]]:
    """An engine and the seconds it took to start."""
    config = EngineConfig(
        model_path=Path(folder),
        weights="random",
        device="cuda",
        tensor_parallel_size=ranks,
        quantization=quantization,
        deterministic=deterministic,
        prefix_caching=False,
        max_model_len=MAX_LEN,
        max_running_requests=rows,
        step_token_budget=BUDGET,
        memory_fraction=0.96,  # a batch of 128 needs the cache
    )
    engine, ready = build_engine(config, lambda *_: None)
    try:
        yield engine, ready.load_seconds
    finally:
        engine.close()


def add_requests(engine: Engine, batch: int, tokens: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    for i in range(batch):
        prompt = [random.randrange(10_000) for _ in range(INPUT)]
        engine.add_request(EngineRequest(str(i), prompt, params))


def seconds(engine: Engine, batch: int, tokens: int) -> float:
    add_requests(engine, batch, tokens)
    made = 0
    started = time.perf_counter()
    while engine.has_work():
        made += sum(len(delta.new_token_ids) for delta in engine.step())
    taken = time.perf_counter() - started
    assert made == batch * tokens
    return taken


def profile_decode(engine: Engine, batch: int, steps: int = 16) -> str:
    """Device time of each kernel in a decode step, and how long the device idles."""
    add_requests(engine, batch, 2 * steps + 8)
    for _ in range(steps + 4):
        engine.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        for _ in range(steps):
            engine.step()
        torch.cuda.synchronize()
    while engine.has_work():
        engine.step()
    return f"decode, batch {batch}: {summary(trace, steps)}"


def profile_prefill(engine: Engine, batch: int) -> str:
    """The same of the prefill of `batch` prompts, all steps together."""
    seconds(engine, batch, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        seconds(engine, batch, 1)
    return f"prefill, {batch} prompts of {INPUT}: {summary(trace, 1)}"


def summary(trace: torch.profiler.profile, steps: int) -> str:
    """The kernels of a step, the costliest first. The share of one is counted from the end of the
    kernel before it to its own: its whole time includes its wait for that one, beside which it is
    set up."""
    spans: dict[str, list[float]] = {}
    shares: dict[str, float] = {}
    ordered = sorted(trace.events() or [], key=lambda event: event.time_range.start)
    ordered = [event for event in ordered if event.device_type == DeviceType.CUDA]
    busy, end = 0.0, 0.0
    for event in ordered:
        start, stop = event.time_range.start, event.time_range.end
        spans.setdefault(event.name, []).append(stop - start)
        share = max(0.0, stop - max(start, end))
        shares[event.name] = shares.get(event.name, 0.0) + share
        busy += share
        end = max(end, stop)
    span = end - ordered[0].time_range.start
    lines = [
        f"{span / steps / 1e3:.3f} ms between first and last kernel, device busy"
        f" {busy / steps / 1e3:.3f} ms, idle {(span - busy) / steps:.0f} us"
    ]
    for name, times in sorted(spans.items(), key=lambda item: -shares[item[0]])[:25]:
        lines.append(
            f"{shares[name] / steps:9.1f} us of {sum(times) / steps:9.1f}"
            f" {len(times) / steps:7.1f} x"
            f" {sorted(times)[len(times) // 2]:8.2f} us  {name[:90]}"
        )
    return "\n".join(lines)


def measure(engine: Engine, batch: int) -> dict[str, float]:
    preempted = engine.stats().preemptions
    seconds(engine, batch, OUTPUT + 1)
    first = min(seconds(engine, batch, 1) for _ in range(2))
    return {
        "batch": batch,
        "step_ms": (seconds(engine, batch, OUTPUT + 1) - first) / OUTPUT * 1e3,
        "prefill_tokens_per_s": batch * INPUT / first,
        "preemptions": engine.stats().preemptions - preempted,  # more than 0: the cache is small
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--ranks", type=int, default=1, help="GPUs that share the model")
    parser.add_argument("--slice-of", type=int, default=1, help="ranks of which one is computed")
    parser.add_argument("--quantization", default="none", choices=["none", "fp8"])
    parser.add_argument("--deterministic", action="store_true", help="batch-invariant kernels")
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--profile", action="store_true", help="kernels instead of times")
    parser.add_argument("--out", type=Path, default=RESULTS / "dbrx_steps.json")
    arguments = parser.parse_args()
    batches = [int(batch) for batch in arguments.batches.split(",")]
    ceilings = Ceilings.measured()
    bandwidth, rates = ceilings.bandwidth, ceilings.rates
    shape = json.loads((resolve("dbrx", allow_shapes=True) / "config.json").read_text())
    config = {**shape, "n_layers": arguments.layers}
    model = parse_config(config)
    ranks = max(arguments.ranks, arguments.slice_of)
    rows, profiles = [], []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        made = (
            slice_engine(
                Path(folder),
                ranks,
                quantization=arguments.quantization,
                deterministic=arguments.deterministic,
                max_model_len=MAX_LEN,
                max_running_requests=max(batches),
                cache_tokens=(max(batches) + 1) * (INPUT + 2 * OUTPUT),
            )
            if arguments.slice_of > 1
            else whole_engine(
                folder,
                ranks,
                arguments.quantization,
                max(batches),
                deterministic=arguments.deterministic,
            )
        )
        with made as (engine, load_seconds):
            cache_blocks = engine.stats().kv_blocks_total
            print(
                f"loaded in {load_seconds:.1f} s; copies at {bandwidth / 1e12:.2f} TB/s,"
                f" products at {rates['none'] / 1e12:.0f} TFLOP/s, in 8 bits"
                f" {rates['fp8'] / 1e12:.0f}; cache of {cache_blocks:,} blocks"
            )
            for batch in batches:
                if arguments.profile:
                    profiles += [profile_decode(engine, batch), profile_prefill(engine, batch)]
                    print("\n".join(profiles[-2:]), flush=True)
                    continue
                row = measure(engine, batch)
                limit = step_bytes(model, batch, ranks, arguments.quantization) / bandwidth * 1e3
                row |= {"limit_ms": limit, "limit_over_step": limit / row["step_ms"]}
                row["prefill_limit_tokens_per_s"] = prefill_limit(
                    model, batch, ranks, arguments.quantization, rates
                )
                share = row["prefill_tokens_per_s"] / row["prefill_limit_tokens_per_s"]
                rows.append(row)
                print(
                    f"batch {batch:4d}: step {row['step_ms']:6.2f} ms, limit {limit:6.2f} ms,"
                    f" {limit / row['step_ms']:4.0%};"
                    f" prefill {row['prefill_tokens_per_s']:,.0f} tok/s,"
                    f" {share:.0%} of {row['prefill_limit_tokens_per_s']:,.0f};"
                    f" {row['preemptions']} preemptions",
                    flush=True,
                )
    document = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "layers": arguments.layers,
        "ranks": arguments.ranks,
        "slice_of": arguments.slice_of,
        "quantization": arguments.quantization,
        "deterministic": arguments.deterministic,
        "copy_tb_s": bandwidth / 1e12,
        "matrix_tflop_s": {name: rate / 1e12 for name, rate in rates.items()},
        "load_seconds": load_seconds,
        "cache_blocks": cache_blocks,
        "rows": rows,
        "profiles": profiles,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
