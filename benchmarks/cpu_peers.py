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
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
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


def start_peers(names: list[str], arguments: argparse.Namespace) -> list[Peer]:
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
    peers = []
    for name in names:
        with console.status(f"loading {name}"):
            peers.append(known[name]())
    return peers


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
    about, settings = document["machine"], document["settings"]
    names, streams = settings["peers"], settings["streams"]
    versions = ", ".join(f"{name} {v}" for name, v in about["packages"].items())
    ours = names[0]
    others = names[1:] if ours.startswith("dropless") else []

    def row(label: str, value: Callable[[str], float]) -> str:
        values = [value(name) for name in names]
        ratios = [values[0] / values[names.index(other)] for other in others]
        cells = [f"{v:.1f}" for v in values] + [f"{r:.2f}" for r in ratios]
        return f"| {label} | " + " | ".join(cells) + " |"

    inputs, least = settings["input_tokens"], min(streams)
    lines = [
        f"{settings['model']}, prompts of {inputs} tokens, {settings['output_tokens']} out, "
        f"greedy; {settings['threads']} threads; medians of {settings['repeats']} interleaved "
        "repeats.",
        f"{about['cpu']}, {about['cores']} cores ({', '.join(about['cpu_features'])}), "
        f"{about['memory_gib']} GiB; {versions}; Python {about['python']}; {about['date'][:10]}.",
        "",
        f"| tokens/s | {' | '.join(names)} |" + "".join(f" {ours} / {o} |" for o in others),
        "|---" + "|---:" * (len(names) + len(others)) + "|",
        row("prefill, one stream", lambda n: inputs * 1e3 / median_of(found, n, least, "ttft_ms")),
        row("decode, one stream", lambda n: 1e3 / median_of(found, n, least, "tpot_ms")),
        *(
            row(
                f"output, {count} stream{'s' * (count > 1)} in all",
                lambda n, c=count: median_of(found, n, c, "output_throughput"),
            )
            for count in streams
        ),
        "",
        "| memory, MB | peak resident, all processes | proportional, after the run |",
        "|---|---:|---:|",
        *(
            f"| {name} | {memory['peak_rss'] / 1e6:.0f} | {memory['pss'] / 1e6:.0f} |"
            for name, memory in document["memory_bytes"].items()
        ),
    ]
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
    peers: list[Peer] = []
    try:
        peers = start_peers(names, arguments)
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
