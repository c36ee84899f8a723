"""Dropless beside llama.cpp and transformers on this machine's CPU: one model, one workload.

    python benchmarks/cpu_peers.py MODEL.gguf
    python benchmarks/cpu_peers.py MODEL.gguf --peers llama.cpp,transformers --repeats 1

Every peer runs in processes of its own with the same number of threads, all stay loaded, and only
one works at a time. For each number of streams, each peer in turn gets that many prompts at once
(random token ids, so no prefix is shared), decoded greedily to the full output length; the whole
round is repeated and medians are reported. Servers are measured over HTTP by the same client.
Writes results/cpu_peers.json and results/cpu_peers.md beside this script.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from gguf import GGUFReader
from rich.console import Console

from dropless.bench.metrics import summarize
from peers import peer as peer_module
from peers.peer import Peer

RESULTS = Path(__file__).parent / "results"
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
console = Console(stderr=True, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One batch on one peer."""

    peer: str
    streams: int
    repeat: int
    output_throughput: float  # output tokens a second over all streams, prefill included
    ttft_ms: float  # median over the streams
    tpot_ms: float  # median over the streams


def measure(
    peer: Peer, streams: int, repeat: int, input_tokens: int, output_tokens: int
) -> Measurement:
    rng = random.Random(f"{streams} {repeat}")  # the same prompts for every peer
    prompts = [[rng.randint(1000, 29_999) for _ in range(input_tokens)] for _ in range(streams)]
    summary = summarize(peer.measure(prompts, output_tokens))
    assert summary.ttft is not None
    assert summary.tpot is not None
    return Measurement(
        peer.name, streams, repeat, summary.output_throughput, summary.ttft.p50, summary.tpot.p50
    )


def start_peers(names: list[str], arguments: argparse.Namespace, peers: list[Peer]) -> None:
    """Appends each to `peers` as it starts, so that the caller can stop those that did."""
    gguf, threads = arguments.gguf, arguments.threads
    slot_tokens = arguments.input_tokens + arguments.output_tokens + 16
    known: dict[str, Callable[[], Peer]] = {
        "dropless": lambda: peer_module.dropless_server(gguf, threads, arguments.port),
        "dropless offline": lambda: peer_module.dropless_offline(gguf, threads),
        "llama.cpp": lambda: peer_module.llama_cpp(
            gguf, threads, max(arguments.streams), slot_tokens
        ),
        "transformers": lambda: peer_module.transformers_batch(gguf, threads),
    }
    for name in names:
        with console.status(f"loading {name}"):
            peers.append(known[name]())


def run(peers: list[Peer], arguments: argparse.Namespace) -> list[Measurement]:
    """All peers in turn at each number of streams, all of it `repeats` times."""
    sizes = (arguments.input_tokens, arguments.output_tokens)
    for peer in peers:
        measure(peer, 1, -1, *sizes)  # the first request after loading is nobody's usual one
    found = []
    for repeat in range(arguments.repeats):
        for streams in arguments.streams:
            for peer in peers:
                result = measure(peer, streams, repeat, *sizes)
                console.print(
                    f"repeat {repeat + 1}, {streams:3d} streams, {peer.name:17s}"
                    f"{result.output_throughput:8.1f} output tok/s, TTFT {result.ttft_ms:8.1f} ms,"
                    f" TPOT {result.tpot_ms:7.2f} ms"
                )
                found.append(result)
    return found


def measured_limits(gguf: Path, threads: int) -> dict[str, float]:
    """What the machine allows one stream of this model, in tokens a second: decoding reads the
    whole file once a token, prefill multiplies every weight of the layers once a token."""
    script = Path(__file__).parent / "peers" / "machine_limits.py"
    size = gguf.stat().st_size
    command = [sys.executable, str(script), str(size), str(threads)]
    machine_rates = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    tensors = GGUFReader(gguf).tensors
    weights = sum(int(t.n_elements) for t in tensors if t.name.startswith("blk."))
    fastest = max(machine_rates["matmul_tflop_s"].values())
    return {
        **machine_rates,
        "decode": machine_rates["read_gb_s"] * 1e9 / size,
        "prefill": fastest * 1e12 / (2 * weights),
    }


def median_of(found: list[Measurement], peer: str, streams: int, figure: str) -> float:
    return statistics.median(
        getattr(m, figure) for m in found if (m.peer, m.streams) == (peer, streams)
    )


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    info = Path("/proc/cpuinfo").read_text()
    fields = dict(
        (part.strip() for part in line.split(":", 1)) for line in info.splitlines() if ":" in line
    )
    packages = ("dropless", "torch", "xllamacpp", "transformers")
    return {
        "cpu": fields["model name"],
        "cores": psutil.cpu_count(),
        "cpu_features": [name for name in CPU_FEATURES if name in fields["flags"].split()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": psutil.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def markdown(document: dict[str, Any], found: list[Measurement]) -> str:
    """The tables to publish. Ratios are the first peer against the others and the limit."""
    about, settings, limits = document["machine"], document["settings"], document["limits"]
    names, streams = settings["peers"], settings["streams"]
    inputs, outputs, least = settings["input_tokens"], settings["output_tokens"], min(streams)

    def row(label: str, limit: float, value: Callable[[str], float]) -> str:
        values = [value(name) for name in names]
        ratios = [values[0] / other for other in (*values[1:], limit)]
        cells = [f"{v:.1f}" for v in (*values, limit)] + [f"{ratio:.2f}" for ratio in ratios]
        return f"| {label} | {' | '.join(cells)} |"

    def output_limit(count: int) -> float:
        return count * outputs / (count * inputs / limits["prefill"] + outputs / limits["decode"])

    columns = [*names, "limit", *(f"{names[0]} / {other}" for other in (*names[1:], "limit"))]
    versions = ", ".join(f"{name} {v}" for name, v in about["packages"].items())
    lines = [
        f"{settings['model']}, prompts of {inputs} tokens, {outputs} out, greedy; "
        f"{settings['threads']} threads; medians of {settings['repeats']} interleaved repeats.",
        f"{about['cpu']}, {about['cores']} cores ({', '.join(about['cpu_features'])}), "
        f"{about['memory_gib']} GiB; {versions}; Python {about['python']}; {about['date'][:10]}.",
        f"Limit: weights read at {limits['read_gb_s']:.0f} GB/s, multiplied at "
        f"{max(limits['matmul_tflop_s'].values()):.2f} TFLOP/s, both measured in this run.",
        "",
        f"| tokens/s | {' | '.join(columns)} |",
        "|---" + "|---:" * len(columns) + "|",
        row(
            "prefill, one stream",
            limits["prefill"],
            lambda name: inputs * 1e3 / median_of(found, name, least, "ttft_ms"),
        ),
        row(
            "decode, one stream",
            limits["decode"],
            lambda name: 1e3 / median_of(found, name, least, "tpot_ms"),
        ),
    ]
    for count in streams:
        label = f"output, {count} streams in all" if count > 1 else "output, one stream"
        rate = partial(median_of, found, streams=count, figure="output_throughput")
        lines.append(row(label, output_limit(count), rate))
    lines += [
        "",
        "| memory, MB | peak resident, summed | proportional, after the run |",
        "|---|---:|---:|",
    ]
    for name, memory in document["memory_bytes"].items():
        lines.append(f"| {name} | {memory['peak_rss'] / 1e6:.0f} | {memory['pss'] / 1e6:.0f} |")
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path, help="the model, a GGUF file")
    parser.add_argument(
        "--peers",
        default="dropless,dropless offline,llama.cpp,transformers",
        help="names separated by commas; ratios are the first against the others",
    )
    parser.add_argument("--streams", default="1,2,4,8,16", help="numbers of streams to measure")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--input-tokens", type=int, default=400)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=8765, help="for the Dropless server")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu_peers", help="without suffix")
    arguments = parser.parse_args()
    arguments.streams = [int(count) for count in arguments.streams.split(",")]
    return arguments


def main() -> None:
    arguments = parse_arguments()
    names = arguments.peers.split(",")
    about = machine()
    limits = measured_limits(arguments.gguf, arguments.threads)
    peers: list[Peer] = []
    try:
        start_peers(names, arguments, peers)
        found = run(peers, arguments)
        memory = {
            peer.name: {
                "peak_rss": peer_module.peak_rss_bytes(peer),
                "pss": peer_module.pss_bytes(peer),
            }
            for peer in peers
        }
    finally:
        for peer in peers:
            peer_module.stop(peer)
    document = {
        "machine": about,
        "settings": {
            "model": arguments.gguf.name,
            "peers": names,
            "streams": arguments.streams,
            "repeats": arguments.repeats,
            "input_tokens": arguments.input_tokens,
            "output_tokens": arguments.output_tokens,
            "threads": arguments.threads,
        },
        "limits": limits,
        "memory_bytes": memory,
        "measurements": [asdict(measurement) for measurement in found],
    }
    table = markdown(document, found)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table)
    sys.stdout.write(table)


if __name__ == "__main__":
    main()
