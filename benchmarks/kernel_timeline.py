"""When each kernel of a layer starts, has waited for the one before it, and ends.

    python -m benchmarks.kernel_timeline --slice-of 8 --quantization fp8 --batches 1,8,32,256

A profiler tells how long a kernel is there, and on Hopper that includes its wait for the kernel
before it, beside which it is set up. So this copies the package, puts a stamp of the GPU's clock at
the start of every program of every kernel, where it has waited, and at its end, and runs decoding
steps of DBRX with that (generated weights, sequences of some 550 tokens). What stands in the log
after a step is the last layer, and after it the output head: microseconds since attention's first
program had waited, means of `--steps` steps. The stamps take part of a microsecond a kernel.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from benchmarks.dbrx_steps import INPUT, MAX_LEN, OUTPUT, add_requests

import dropless
from dropless.bench.slice_engine import slice_engine
from dropless.checkpoints.resolve import resolve
from dropless.engine.engine import Engine
from dropless.ops.triton import launch

_PROGRAMS = 16384  # of one kernel
_START, _WAITED, _END = range(3)
_ATTENTION = "attention._decode_kernel"
_STAMP = f"""

KERNELS: tuple[str, ...] = ()
LOG = torch.zeros(64, 3, {_PROGRAMS}, dtype=torch.int64, device="cuda")
_LOG = tl.constexpr(LOG.data_ptr())


@triton.jit
def stamp(PLACE: tl.constexpr):
    across = tl.program_id(1) + tl.num_programs(1) * tl.program_id(2)
    program = tl.program_id(0) + tl.num_programs(0) * across
    at = program.to(tl.int64) * 8 + (_LOG + PLACE * {8 * _PROGRAMS})
    tl.inline_asm_elementwise(
        "{{ .reg .pred p; .reg .u32 t; .reg .u64 g; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0;"
        " mov.u64 g, %globaltimer; @p st.global.u64 [$1], g; mov.u32 $0, 0; }}",
        "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1,
    )
"""


def stamped_package(folder: Path) -> list[str]:
    """Copies the package into `folder`, with stamps. Returns the kernels' names."""
    package = Path(dropless.__file__).parent
    shutil.copytree(package, folder / package.name)
    room = folder / package.name / "ops" / "triton"
    names: list[str] = []
    for path in sorted(room.glob("*.py")):
        lines = path.read_text().split("\n")
        first = len(names)
        for function in kernels(path):
            names.append(f"{path.stem}.{function.name}")
            stamp_kernel(lines, function, len(names) - 1)
        if len(names) > first:
            imports = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ImportFrom)]
            at = imports[-1].end_lineno
            lines.insert(at or 0, "from dropless.ops.triton.launch import stamp")
            path.write_text("\n".join(lines))
    stamps = _STAMP.replace("KERNELS: tuple[str, ...] = ()", f"KERNELS = {tuple(names)}")
    with (room / "launch.py").open("a") as file:
        file.write(stamps)
    return names


def kernels(path: Path) -> Iterator[ast.FunctionDef]:
    """Those of a file that wait for the kernel before them, the last one first: so that lines above
    stay where they are while stamps are put in."""
    for node in reversed(ast.parse(path.read_text()).body):
        if isinstance(node, ast.FunctionDef) and any(_is_wait(part) for part in ast.walk(node)):
            yield node


def _is_wait(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node) == "after_previous(EARLY)"


def stamp_kernel(lines: list[str], function: ast.FunctionDef, kernel: int) -> None:
    """Puts the stamps of one kernel into the lines of its file."""
    body = [
        statement
        for statement in function.body
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
    ]
    places = [(body[0].lineno - 1, _START, body[0].col_offset)]
    for node in ast.walk(function):
        if isinstance(node, ast.Expr) and _is_wait(node):
            places.append((node.lineno, _WAITED, node.col_offset))
        elif isinstance(node, ast.Return):
            places.append((node.lineno - 1, _END, node.col_offset))
    places.append((function.end_lineno or 0, _END, 4))
    for line, place, indent in sorted(places, reverse=True):
        lines.insert(line, f"{' ' * indent}stamp({3 * kernel + place})")


def timeline(engine: Engine, batch: int, steps: int) -> dict[str, list[float]]:
    """By kernel, in their order: programs; first and last start, first and last that has waited,
    first and last end."""
    log: torch.Tensor = launch.LOG  # type: ignore[attr-defined]
    add_requests(engine, batch, 2 * steps + 40)
    for _ in range(32 + batch // 8):  # prompts are read by then
        engine.step()
    found: dict[str, list[list[float]]] = {}
    for _ in range(steps):
        torch.cuda.synchronize()
        log.zero_()
        torch.cuda.synchronize()
        engine.step()
        torch.cuda.synchronize()
        rows = {}
        for name, stamps in zip(launch.KERNELS, log, strict=False):  # type: ignore[attr-defined]
            there = stamps[_START] > 0
            if there.any():
                ends = [edge(stamps[place][there]) for place in (_START, _WAITED, _END)]
                rows[name] = [float(there.sum()), *(time for pair in ends for time in pair)]
        zero = rows[_ATTENTION][3]
        for name, row in rows.items():
            since = [(time - zero) / 1e3 for time in row[1:]]
            found.setdefault(name, []).append([row[0], *since])
    while engine.has_work():
        engine.step()
    means = {
        name: [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        for name, rows in found.items()
    }
    return dict(sorted(means.items(), key=lambda item: item[1][3]))


def edge(times: torch.Tensor) -> tuple[float, float]:
    """The first and the last; a program that has returned early has no later stamps."""
    times = times[times > 0]
    return (float(times.min()), float(times.max())) if len(times) else (0.0, 0.0)


def show(rows: dict[str, list[float]]) -> None:
    print("  programs   starts           has waited       ends             kernel")
    for name, (programs, *times) in rows.items():
        columns = "  ".join(f"{time:7.2f}" for time in times)
        print(f"  {programs:8.0f}  {columns}  {name}")
    in_layer = [(name, row) for name, row in rows.items() if row[3] >= 0]
    for (before, first), (name, second) in pairwise(in_layer):
        print(f"    {second[3] - first[6]:6.2f} us from the end of {before} to {name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--slice-of", type=int, default=8, help="ranks of which one is computed")
    parser.add_argument("--quantization", default="none", choices=["none", "fp8"])
    parser.add_argument("--batches", default="1,8,32,256")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, help="a JSON file for the times")
    arguments = parser.parse_args()
    if not hasattr(launch, "KERNELS"):
        with tempfile.TemporaryDirectory() as folder:
            stamped_package(Path(folder))
            path = os.pathsep.join([folder, str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
            command = [sys.executable, "-m", "benchmarks.kernel_timeline", *sys.argv[1:]]
            sys.exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode)
    batches = [int(batch) for batch in arguments.batches.split(",")]
    shape = json.loads((resolve("dbrx", allow_shapes=True) / "config.json").read_text())
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        config = {**shape, "n_layers": arguments.layers}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        with slice_engine(
            Path(folder),
            arguments.slice_of,
            quantization=arguments.quantization,
            max_model_len=MAX_LEN,
            max_running_requests=max(batches),
            cache_tokens=(max(batches) + 1) * (INPUT + 2 * OUTPUT),
        ) as (engine, _):
            for batch in batches:
                times[batch] = timeline(engine, batch, arguments.steps)
                print(f"batch {batch}, {torch.cuda.get_device_name()}", flush=True)
                show(times[batch])
    if arguments.out:
        arguments.out.write_text(json.dumps(times, indent=1) + "\n")


if __name__ == "__main__":
    main()
