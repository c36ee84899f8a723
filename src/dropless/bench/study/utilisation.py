"""How much of a GPU a window of a closed loop uses.

MBU = (bytes of the parameters that a decode step reads, and of keys and values) / TPOT / bandwidth.
MFU = operations of all tokens computed / time / rate of matrix products. Both of one rank, against
the GPU's measured ceilings (`dropless.bench.gpus`), with even routing.
"""

from __future__ import annotations

from dropless.bench.gpus import Gpu, known_gpus
from dropless.bench.roofline import Layout, Shape, Tokens, Work, prefill_steps, step_work
from dropless.bench.study.closed_loop import Window


def gpu_named(device_name: str | None) -> Gpu | None:
    """The ceilings of this kind of GPU, if they are known."""
    return next((gpu for gpu in known_gpus().values() if gpu.device_name == device_name), None)


def mean_rows(window: Window) -> float:
    """Answers that are written at once; the other users wait for their first token. By Little's
    law: tokens a second, times how long one takes."""
    return min(window.users, window.output_tokens_per_s * window.tpot.mean / 1e3)


def mbu(window: Window, shape: Shape, ranks: int, context: float, gpu: Gpu) -> float:
    """`context` is a sequence's mean length in tokens."""
    rows = max(1, round(mean_rows(window)))
    work = step_work(shape, Layout(ranks), Tokens.decode(rows, context))
    return 1e3 * work.num_bytes / window.tpot.mean / (1e12 * gpu.bandwidth_tb_s)


def mfu(
    window: Window, shape: Shape, ranks: int, input_tokens: int, context: float, gpu: Gpu
) -> float:
    """Prompts and answers together."""
    layout = Layout(ranks)
    [prompt] = prefill_steps(1, input_tokens, input_tokens)
    of_prompt = _operations(step_work(shape, layout, prompt)) / input_tokens
    of_output = _operations(step_work(shape, layout, Tokens.decode(1, context)))
    prompt_rate = window.total_tokens_per_s - window.output_tokens_per_s
    done = of_prompt * prompt_rate + of_output * window.output_tokens_per_s
    return done / (1e12 * gpu.bf16_tflops)


def _operations(work: Work) -> float:
    return sum(part.operations for part in work.parts.values())
