"""Greedy continuations of the catalogue's small models beside llama.cpp's, and where they part.

    python -m benchmarks.llama_cpp_agreement
    python -m benchmarks.llama_cpp_agreement --models smollm2-135m-instruct --threads 4

Run from the repository's root. Each model (fetched if need be) continues 20 prompts by 16 tokens
in Dropless, with float32 and with fp16 weights, and in llama.cpp twice: as it comes, which rounds
activations to 8 bits, and on a copy of the same weights as float32 (four times the file's size, in
a temporary folder). Writes results/llama_cpp_agreement.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from tests.checkpoints.llama_cpp_witness import llama_cpp_greedy_many
from tests.engine.agreement import (
    CODE_PROMPTS,
    MAX_TOKENS,
    TEXT_PROMPTS,
    TOP,
    compare,
    dropless_greedy,
    encode,
)
from tests.engine.float32_gguf import write_float32_gguf

from dropless.checkpoints.resolve import resolve

RESULTS = Path(__file__).parent / "results"
PROMPTS = {
    "smollm2-135m-instruct": TEXT_PROMPTS,
    "qwen2.5-coder-0.5b-instruct": CODE_PROMPTS,
}
console = Console(stderr=True, soft_wrap=True)


def measure(name: str, threads: int) -> list[dict[str, Any]]:
    """All comparisons of one model."""
    prompts, path = PROMPTS[name], resolve(name)
    token_ids = encode(path, prompts)
    with tempfile.TemporaryDirectory() as folder:
        exact = write_float32_gguf(path, Path(folder) / "float32.gguf")
        theirs = {
            activations: llama_cpp_greedy_many(file, token_ids, MAX_TOKENS, TOP, threads)
            for activations, file in {"8 bits": path, "float32": exact}.items()
        }
    found = []
    for quantization in ("none", "fp16"):
        ours = dropless_greedy(
            path,
            token_ids,
            device="cpu",
            threads=threads,
            dtype="float32",
            quantization=quantization,
        )
        for activations, steps in theirs.items():
            agreement = compare(prompts, ours, steps)
            console.print(
                f"{name}, quantization {quantization}, llama.cpp with activations in"
                f" {activations}: {agreement.agreed} of {agreement.prompts} alike,"
                f" log-probabilities apart by {agreement.median_distance:.1e} (median),"
                f" {agreement.largest_distance:.1e} (largest)"
            )
            found.append(
                {
                    "model": name,
                    "dropless_quantization": quantization,
                    "llama_cpp_activations": activations,
                    "agreed": agreement.agreed,
                    **asdict(agreement),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(PROMPTS), help="names, separated by commas")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    results = [
        result
        for name in arguments.models.split(",")
        for result in measure(name, arguments.threads)
    ]
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {arguments.threads} threads",
        "versions": {name: version(name) for name in ("dropless", "torch", "xllamacpp")},
        "tokens": MAX_TOKENS,
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "llama_cpp_agreement.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
