"""How fast a checkpoint comes from disk onto a GPU (or into host memory), beside a plain read.

    python benchmarks/loading.py FOLDER --gigabytes 8
    python benchmarks/loading.py FOLDER --gigabytes 2 --device cpu

Writes a DBRX of a quarter of the real layers' size in bfloat16 to FOLDER/dbrx (several files) and
removes it at the end. Measures, each time with the files pushed out of the system's cache: reading
all of them into one buffer with one thread and with as many as loading has; loading in bfloat16 and
in fp8. Then loading with the files in the cache, which shows what the way costs without the disk.
All rates are of the files' bytes. Peak memory is the process' resident set while it loads. Writes
results/loading.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import torch

from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.writer import (
    dbrx_tensor_shapes,
    tiny_dbrx_config,
    write_safetensors_checkpoint,
)
from dropless.layers.weights import WeightFormat
from dropless.models.registry import load_model, num_readers
from dropless.parallel.group import SOLO

RESULTS = Path(__file__).parent / "results"
SHAPE = {
    "d_model": 3072,
    "n_heads": 24,
    "kv_n_heads": 4,
    "ffn_hidden_size": 5376,
    "moe_num_experts": 16,
    "moe_top_k": 4,
    "vocab_size": 32_000,
    "max_seq_len": 2048,
}
LAYER_BYTES = 1.63e9
READ_BYTES = 8 * 2**20


def write(folder: Path, gigabytes: float) -> list[Path]:
    """The checkpoint's files. Random rows, but each many times: numbers do not matter here."""
    config = tiny_dbrx_config(**SHAPE, n_layers=max(1, round(gigabytes * 1e9 / LAYER_BYTES)))
    tensors = {
        name: torch.randn(shape[-1]).bfloat16().expand(shape)
        for name, shape in dbrx_tensor_shapes(config).items()
    }
    write_safetensors_checkpoint(folder, config, tensors, shards=2 * config["n_layers"])
    return sorted(folder.glob("*.safetensors"))


def forget(files: list[Path]) -> None:
    """Push the files out of the system's cache."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(files: list[Path], num_threads: int) -> None:
    def read_one(file: Path) -> None:
        buffer = bytearray(READ_BYTES)
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(read_one, files))


def load(folder: Path, device: torch.device, quantization: WeightFormat) -> None:
    model = load_model(
        open_checkpoint(folder), dtype=torch.bfloat16, device=device, quantization=quantization
    )
    if device.type == "cuda":
        torch.cuda.synchronize()
    del model


def peak_memory_gb() -> float:
    """Since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="on the disk that is measured")
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--out", type=Path, default=RESULTS / "loading.json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)  # as the engine loads
    torch.zeros(1, device=device)  # CUDA starts before the clock does
    readers = num_readers(SOLO)
    folder = arguments.folder / "dbrx"
    cases: list[tuple[str, bool, Callable[[], None]]] = [
        ("plain read, 1 thread", True, lambda: read(files, 1)),
        (f"plain read, {readers} threads", True, lambda: read(files, readers)),
        ("load, bfloat16", True, lambda: load(folder, device, "none")),
        ("load, fp8", True, lambda: load(folder, device, "fp8")),
        ("load, bfloat16, files in cache", False, lambda: load(folder, device, "none")),
        ("load, fp8, files in cache", False, lambda: load(folder, device, "fp8")),
    ]
    rows = []
    try:
        started = time.perf_counter()
        files = write(folder, arguments.gigabytes)
        num_bytes = sum(file.stat().st_size for file in files)
        print(f"wrote {num_bytes / 1e9:.1f} GB in {time.perf_counter() - started:.1f} s")
        for name, cold, run in cases:
            if cold:
                forget(files)
            else:
                read(files, readers)
            forget_peak()
            started = time.perf_counter()
            run()
            taken = time.perf_counter() - started
            row = {"case": name, "gb_s": num_bytes / taken / 1e9, "peak_gb": peak_memory_gb()}
            rows.append(row)
            print(
                f"{name:32} {row['gb_s']:6.2f} GB/s  peak memory {row['peak_gb']:5.2f} GB",
                flush=True,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    document = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gigabytes": num_bytes / 1e9,
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
