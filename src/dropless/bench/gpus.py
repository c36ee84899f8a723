"""What GPUs can do: measured ceilings, from gpus.json, and what this engine makes of them."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from dropless.errors import SettingsError

Precision = Literal["none", "fp8"]  # as the engine's setting `quantization`; none is bfloat16

_GPUS = Path(__file__).with_name("gpus.json")
EFFICIENCIES = Path(__file__).with_name("efficiencies.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Ceilings of one GPU: measured where it comes from gpus.json. None is not known."""

    name: str
    device_name: str  # as PyTorch names it; empty for one that the user describes
    compute_capability: tuple[int, int]
    memory_gib: float  # free on a device that nothing else uses
    bandwidth_tb_s: float  # bytes read and written a second by a large copy, 10^12
    bf16_tflops: float
    fp8_tflops: float | None
    link_gb_s: float | None  # bus bandwidth of a large all-reduce, 10^9 bytes a second
    all_reduce_us: float | None  # time of an all-reduce of a few bytes
    source: str

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    def operations_per_s(self, precision: Precision) -> float:
        """Of matrix products. An unknown fp8 rate is taken to be that of bfloat16."""
        tflops = self.fp8_tflops if precision == "fp8" else None
        return 1e12 * (tflops or self.bf16_tflops)


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """How near the engine comes to a GPU's ceilings, fitted to measurements by
    benchmarks/roofline_data.py. A share is of the ceiling, 0 to 1."""

    gpu: str
    quantization: Precision
    bandwidth_share: float
    decode_matrix_share: float
    prefill_matrix_share: float
    decode_layer_us: float  # a layer's fixed time: kernels begin, wait for each other and end
    prefill_layer_us: float  # likewise, with each kernel launched by itself and not in a graph
    step_us: float  # a step's fixed time: sampling, what the host does between two steps
    rows: int  # measured cases that it was fitted to
    layers: tuple[int, ...]  # of their models: only two depths tell a layer's time from step_us
    source: str


@cache
def known_gpus() -> dict[str, Gpu]:
    """All of gpus.json by name."""
    entries = json.loads(_GPUS.read_text(encoding="utf-8"))
    gpus = [
        Gpu(**{**entry, "compute_capability": tuple(entry["compute_capability"])})
        for entry in entries
    ]
    return {gpu.name: gpu for gpu in gpus}


def find_gpu(
    name: str,
    *,
    memory_gib: float | None = None,
    bandwidth_tb_s: float | None = None,
    tflops: float | None = None,
    fp8_tflops: float | None = None,
    link_gb_s: float | None = None,
    all_reduce_us: float | None = None,
) -> Gpu:
    """A known GPU, with what is given in place of what was measured; or one that is described by
    what is given: of that the first three are needed.

    Raises:
        SettingsError: neither known nor described; the message lists the known.
    """
    given = {
        "memory_gib": memory_gib,
        "bandwidth_tb_s": bandwidth_tb_s,
        "bf16_tflops": tflops,
        "fp8_tflops": fp8_tflops,
        "link_gb_s": link_gb_s,
        "all_reduce_us": all_reduce_us,
    }
    values = {field: value for field, value in given.items() if value is not None}
    for field, value in values.items():
        if value <= 0:
            raise SettingsError(f"{field} of GPU {name} is {value}; it must be above 0")
    known = next((gpu for gpu in known_gpus().values() if gpu.name.lower() == name.lower()), None)
    if known is not None:
        source = f"{', '.join(values)} as given; else {known.source}" if values else known.source
        return replace(known, **values, source=source)  # type: ignore[arg-type]
    if memory_gib is None or bandwidth_tb_s is None or tflops is None:
        close = difflib.get_close_matches(name.upper(), known_gpus(), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise SettingsError(
            f"no ceilings of a GPU {name!r} are known; known are {', '.join(known_gpus())}.{hint}"
            " Describe another one with --memory-gib, --bandwidth-tb-s and --tflops (bfloat16),"
            " best as you measured them"
        )
    return Gpu(
        name=name,
        device_name="",
        compute_capability=(9, 0) if fp8_tflops else (8, 0),
        memory_gib=memory_gib,
        bandwidth_tb_s=bandwidth_tb_s,
        bf16_tflops=tflops,
        fp8_tflops=fp8_tflops,
        link_gb_s=link_gb_s,
        all_reduce_us=all_reduce_us,
        source="as given",
    )


@cache
def known_efficiencies() -> tuple[Efficiency, ...]:
    """All of efficiencies.json."""
    entries = json.loads(EFFICIENCIES.read_text(encoding="utf-8"))
    return tuple(Efficiency(**{**entry, "layers": tuple(entry["layers"])}) for entry in entries)


def find_efficiency(gpu: Gpu, quantization: Precision) -> Efficiency:
    """The one fitted on this GPU in this format; else the nearest: another GPU in this format,
    this GPU in another, any."""
    return min(
        known_efficiencies(),
        key=lambda found: (found.quantization != quantization, found.gpu != gpu.name),
    )
