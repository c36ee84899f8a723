"""What each op takes on this CPU at SmolLM2-135M's shapes: reference, CPU version, and the limit.

The limit is the time in which memory can be copied as far as the op must read and write; layers
take turns, so that keys and weights come from memory. The small ops find their code and inputs in
the processor's cache here; in the whole step at the end, weights push both out between two calls.

Run: python benchmarks/cpu_ops.py [--threads 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dropless.ops.activation import silu_mul
from dropless.ops.attention import PagedBatch, paged_attention
from dropless.ops.half_linear import half_linear, pack_half
from dropless.ops.norm import layer_norm, rms_norm
from dropless.ops.registry import Op
from dropless.ops.rope import rope_and_cache

HIDDEN, WIDTH, VOCAB, LAYERS, ROUNDS = 576, 1536, 49152, 30, 12
HEADS, KV_HEADS, HEAD_DIM, BLOCK = 9, 3, 64, 16
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
STEPS = {  # sequences as (tokens in this step, length with them), those with one first
    "1 decode of 464": [(1, 464)],
    "16 decodes of 450": [(1, 450)] * 16,
    "4 decodes, 256 after 400": [(1, 450)] * 4 + [(256, 656)],
}
Run = Callable[[int], object]  # given the layer
Row = tuple[str, Run, Run, int]  # name, reference, version, bytes moved


class Step:
    """One step's inputs and caches; the blocks of its sequences are shuffled."""

    def __init__(self, sequences: list[tuple[int, int]]) -> None:
        query_lens, seq_lens = ([each[i] for each in sequences] for i in (0, 1))
        counts = [-(-length // BLOCK) for length in seq_lens]
        blocks = torch.randperm(sum(counts)).int().split(counts)
        self.tokens = sum(query_lens)
        self.make_batch = partial(
            PagedBatch,
            torch.randperm(sum(counts) * BLOCK)[: self.tokens],
            torch.nn.utils.rnn.pad_sequence(list(blocks), batch_first=True),
            torch.tensor([0, *query_lens]).cumsum(0).int(),
            torch.tensor(seq_lens).int(),
            *(query_lens.count(1), query_lens, seq_lens),
        )
        shape = (sum(counts), BLOCK, KV_HEADS, HEAD_DIM)
        self.caches = [(torch.randn(shape), torch.randn(shape)) for _ in range(LAYERS)]
        self.kv_bytes = 2 * 4 * KV_HEADS * HEAD_DIM * sum(seq_lens)
        self.rotary = torch.randn(self.tokens, 2, HEAD_DIM)
        self.batch = self.make_batch()

    def attend(self, op: Callable[..., Tensor], q: Tensor, layer: int) -> Tensor:
        if layer == 0:  # what the first layer derives for all is part of a step
            self.batch = self.make_batch()
        return op(q, *self.caches[layer], self.batch, HEAD_DIM**-0.5)

    def rotate(self, op: Callable[..., Tensor], qkv: Tensor, layer: int) -> Tensor:
        where = (self.rotary, *self.caches[layer], self.batch.slot_mapping)
        return op(qkv, *where, num_heads=HEADS, num_kv_heads=KV_HEADS, clip=None)


def step_rows(name: str, step: Step) -> Iterator[Row]:
    t = step.tokens
    x, residual, weight = torch.randn(t, HIDDEN), torch.randn(t, HIDDEN), torch.ones(HIDDEN)
    q, qkv = torch.randn(t, HEADS, HEAD_DIM), torch.zeros(t, QKV)

    def row(op: Op[..., object], run: Callable[..., object], bytes_moved: int) -> Row:
        runs = (partial(run, op.reference), partial(run, op))
        return f"{op.reference.__name__}, {name}", *runs, bytes_moved

    yield row(rms_norm, lambda f, _: f(x, residual, weight, 1e-5), 4 * x.nbytes)
    yield row(layer_norm, lambda f, _: f(x, residual, weight, 1e-5), 4 * x.nbytes)
    yield row(rope_and_cache, lambda f, i: step.rotate(f, qkv, i), 2 * qkv.nbytes)
    yield row(paged_attention, lambda f, i: step.attend(f, q, i), step.kv_bytes + 2 * q.nbytes)


def linear_row(tokens: int, outputs: int, inputs: int, layers: int) -> Row:
    x = torch.randn(tokens, inputs)
    plain = [torch.randn(outputs, inputs) for _ in range(layers)]
    packed = [pack_half(weight) for weight in plain]
    name = f"float32 and half_linear, {tokens} x {outputs} x {inputs}"
    runs = (lambda i: F.linear(x, plain[i % layers]), lambda i: half_linear(x, packed[i % layers]))
    return name, *runs, 2 * inputs * outputs + 4 * tokens * (inputs + outputs)


def one_token_step() -> Run:
    """All of a decode step at 464 tokens of context, weights in float16."""
    step, norm = Step(STEPS["1 decode of 464"]), torch.ones(HIDDEN)
    shapes = [(QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * WIDTH, HIDDEN), (HIDDEN, WIDTH)]
    layers = [[pack_half(torch.randn(s) / s[1] ** 0.5) for s in shapes] for _ in range(LAYERS)]
    head, embedding = pack_half(torch.randn(VOCAB, HIDDEN)), torch.randn(1, HIDDEN)

    def run(_: int) -> Tensor:
        x, residual = embedding, None
        for i, (qkv, out, gate_up, down) in enumerate(layers):
            x, residual = rms_norm(x, residual, norm, 1e-5)
            q = step.rotate(rope_and_cache, half_linear(x, qkv), i)
            x = half_linear(step.attend(paged_attention, q, i).flatten(1), out)
            x, residual = rms_norm(x, residual, norm, 1e-5)
            x = half_linear(silu_mul(half_linear(x, gate_up)), down)
        return half_linear(rms_norm(x, residual, norm, 1e-5)[0], head)

    return run


def microseconds(run: Run, calls: int = LAYERS) -> float:
    """Of one call, in the fastest round of `calls`: whatever else runs here only adds to it."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for layer in range(calls):
            run(layer)
        times.append(time.perf_counter() - start)
    return min(times) / calls * 1e6


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(threads := parser.parse_args().threads)
    source, target = torch.ones(2**25), torch.ones(2**25)
    copy_us = microseconds(lambda _: target.copy_(source), calls=1)
    bytes_per_us = 2 * source.nbytes / copy_us
    print(f"copying memory: {bytes_per_us / 1e3:.1f} GB/s with {threads} threads\n")
    print(f"{'µs':<48}{'reference':>11}{'version':>9}{'faster':>8}{'limit':>7}{'of limit':>10}")
    rows = [row for name, step in STEPS.items() for row in step_rows(name, Step(step))]
    rows += [linear_row(tokens, 2 * WIDTH, HIDDEN, LAYERS) for tokens in (1, 16, 256)]
    rows += [linear_row(tokens, VOCAB, HIDDEN, 2) for tokens in (1, 16)]
    for name, *runs, bytes_moved in rows:
        reference, version = (microseconds(run) for run in runs)
        limit = bytes_moved / bytes_per_us
        times = f"{reference:>11.0f}{version:>9.0f}{reference / version:>7.1f}x{limit:>7.0f}"
        print(f"{name:<48}{times}{limit / version:>10.0%}")
    step_us = microseconds(one_token_step(), calls=1)
    print(f"\na whole one-token step at 464 tokens of context: {step_us:.0f}")


if __name__ == "__main__":
    main()
