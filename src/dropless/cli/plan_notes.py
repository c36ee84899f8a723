"""What a reader of a plan must know: where its figures come from and what they leave out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dropless.bench.gpus import Gpu
from dropless.cli.plan_layouts import PlannedLayout
from dropless.cli.plan_report import LayoutReport


def notes(
    gpu: Gpu, num_layers: int, layouts: Sequence[LayoutReport], batches: Sequence[int]
) -> list[str]:
    """One sentence or two each."""
    fitting = [layout.planned for layout in layouts if layout.planned.fits]
    if not fitting:
        return [f"Ceilings of {gpu.name}: {gpu.source}."]
    return [
        "TP: tensor parallel, a part of each matrix on each GPU. EP: expert parallel, whole"
        " experts on each.",
        "TTFT: all users' prompts arrive together, and the last has its first token. TPOT: a"
        " decode step in the middle of the answers. Limit: what that step must read or compute at"
        " the ceilings, and nothing else. With prompts: tok/s of all users, the time of their"
        " prompts counted.",
        f"Ceilings of {gpu.name}: {gpu.source}.",
        *_left_out(fitting, batches),
        *_missing_ceilings(gpu, fitting),
        *_borrowed(gpu, num_layers, [layout for layout in layouts if layout.planned.fits]),
    ]


def _left_out(layouts: Sequence[PlannedLayout], batches: Sequence[int]) -> Iterator[str]:
    for planned in layouts:
        too_many = [str(batch) for batch in batches if batch > planned.users]
        if too_many:
            yield (
                f"{planned.layout}: the cache holds {planned.users} users at once; of"
                f" {' or '.join(too_many)} the others would wait, so no row is shown."
            )


def _missing_ceilings(gpu: Gpu, layouts: Sequence[PlannedLayout]) -> Iterator[str]:
    if any(planned.layout.count > 1 for planned in layouts):
        if gpu.all_reduce_us is None:
            yield (
                f"The time of a small all-reduce between {gpu.name}s is not known and counted as"
                " none, twice a layer: several GPUs will be slower than shown (--all-reduce-us)."
            )
        if gpu.link_gb_s is None:
            yield (
                f"The bandwidth between {gpu.name}s is not known and counted as endless: several"
                " GPUs will be slower than shown (--link-gb-s)."
            )
    if gpu.fp8_tflops is None and any(p.layout.quantization == "fp8" for p in layouts):
        yield (
            f"The fp8 rate of {gpu.name} is not known and counted as that of bf16: prefill and"
            " large batches will be faster than shown (--fp8-tflops)."
        )


def _borrowed(gpu: Gpu, num_layers: int, layouts: Sequence[LayoutReport]) -> Iterator[str]:
    used = {layout.planned.layout.quantization: layout.efficiency for layout in layouts}
    shallow = {}
    for quantization, efficiency in used.items():
        here, there = (
            _case(quantization, gpu.name),
            _case(efficiency.quantization, efficiency.gpu),
        )
        known = f"{efficiency.rows} measured cases of {there}"
        if here == there:
            yield f"How near the engine comes to the ceilings is known from {known}."
        else:
            yield (
                f"How near the engine comes to the ceilings is not measured for {here} yet and"
                f" taken from {known}."
            )
        if len(efficiency.layers) == 1 and efficiency.layers != (num_layers,):
            shallow[there] = efficiency.layers[0]
    for there, layers in shallow.items():
        yield (
            f"The cases of {there} all have {layers} layers, which does not tell a step's fixed"
            f" time from its layers': predictions for {num_layers} layers are uncertain by it."
        )


def _case(quantization: str, gpu: str) -> str:
    return f"{'bf16' if quantization == 'none' else quantization} on {gpu}"
