"""What guardrails cost: time to the first text, and to the last, beside the same without them.

    python -m benchmarks.guardrails_latency DATA
    python -m benchmarks.guardrails_latency DATA --model qwen2.5-coder-0.5b-instruct

One server with the default model on this machine's CPU, one engine, an endpoint for each set of
rules. The first turns of MT-Bench and Vicuna are asked one after another, greedy, 48 tokens out,
streamed, of every endpoint in turn in an order that changes; the prefix cache is off. A row has the
times of its endpoint and, in pairs with the same prompt on the endpoint without rules, how much
later first and last text came; and the processor time of the encoder process for one request.
Then 64 embeddings at once and one at a time. Writes results/guardrails_latency.json beside this
script.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from benchmarks.served import served

RESULTS = Path(__file__).parent / "results" / "guardrails_latency.json"
TOKENS = 48
CHARACTERS = 600  # of a text to embed: more would be too long for the model
SAFETY, PII = {"safety": True}, {"pii": {"behavior": "MASK"}}
NAMES = {"pii": {"behavior": "MASK", "entities": ["PERSON", "EMAIL_ADDRESS", "PHONE_NUMBER"]}}
RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "safety, input": {"input": SAFETY},
    "personal data, input": {"input": PII},
    "personal data with names, input": {"input": NAMES},
    "safety and personal data, input": {"input": SAFETY | PII},
    "safety and personal data, input and output": {"input": SAFETY | PII, "output": SAFETY | PII},
}
EMBEDDINGS = "all-minilm-l6-v2"


@contextmanager
def server(model: str, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Its address and its process."""
    entity = {"name": "model", "model": model, "engine": {"prefix_caching": False}}
    endpoints = [
        {"name": name, "served_entities": [entity], "guardrails": rules}
        for name, rules in RULES.items()
    ]
    endpoints.append({"name": EMBEDDINGS, "served_entities": [{"model": EMBEDDINGS}]})
    with served({"endpoints": endpoints}, folder) as found:
        yield found


def ask(client: httpx.Client, endpoint: str, prompt: str) -> tuple[float, float]:
    """Seconds to the first and to the last text."""
    body = {
        "model": endpoint,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
    }
    began = time.perf_counter()
    first = 0.0
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not first and line.startswith("data: {") and _content(line):
                first = time.perf_counter() - began
    return first, time.perf_counter() - began


def _content(line: str) -> bool:
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return bool(choices and choices[0]["delta"].get("content"))


def encoder_s(server: psutil.Process) -> float:
    [child] = [c for c in server.children() if "dropless.encoder.process" in c.cmdline()]
    times = child.cpu_times()
    return float(times.user + times.system)


def measure(url: str, process: psutil.Process, prompts: Sequence[str]) -> dict[str, Any]:
    shuffled = random.Random(0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in RULES}
    judging = dict.fromkeys(RULES, 0.0)
    with httpx.Client(base_url=url, timeout=120) as client:
        for name in RULES:
            ask(client, name, "Warm up, please.")
        for prompt in prompts:
            for name in shuffled.sample(list(RULES), len(RULES)):
                before = encoder_s(process)
                times[name].append(ask(client, name, prompt))
                judging[name] += encoder_s(process) - before
    plain = times["none"]
    return {
        name: {
            "first text, ms": _spread([first for first, _ in rows]),
            "first text later, ms": _later([a for a, _ in rows], [a for a, _ in plain]),
            "last text, ms": _spread([last for _, last in rows]),
            "last text later, ms": _later([b for _, b in rows], [b for _, b in plain]),
            "encoder's processor time, ms": round(judging[name] / len(rows) * 1e3, 1),
        }
        for name, rows in times.items()
    }


def embeddings(url: str, texts: Sequence[str]) -> dict[str, Any]:
    """Texts a second, for many at once and one after another."""
    with httpx.Client(base_url=url, timeout=120) as client:

        def embed(given: Sequence[str]) -> float:
            body = {"model": EMBEDDINGS, "input": list(given), "encoding_format": "base64"}
            began = time.perf_counter()
            response = client.post("/v1/embeddings", json=body)
            response.raise_for_status()
            tokens.append(response.json()["usage"]["total_tokens"])
            return time.perf_counter() - began

        tokens: list[int] = []
        embed(texts[:2])
        tokens.clear()
        alone = [embed([text]) for text in texts]
        each = sum(tokens) / len(texts)
        together = min(embed(texts) for _ in range(3))
    return {
        "texts": len(texts),
        "tokens per text": round(each, 1),
        "one at a time, ms": _spread(alone),
        "all at once, texts/s": round(len(texts) / together, 1),
    }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": round(_percentile(seconds, q) * 1e3, 1) for q in (50, 95)}


def _later(seconds: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    return _spread([a - b for a, b in zip(seconds, plain, strict=True)])


def _percentile(values: Sequence[float], q: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[q - 1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=40)
    arguments = parser.parse_args()
    prompts = []
    for name in ("mt_bench_question", "vicuna_bench_question"):
        lines = (arguments.data / "mt-bench" / f"{name}.jsonl").read_text(encoding="utf-8")
        prompts += [json.loads(line)["turns"][0] for line in lines.splitlines()]
    chosen = random.Random(1).sample(prompts, arguments.prompts)
    with tempfile.TemporaryDirectory() as folder, server(arguments.model, Path(folder)) as running:
        url, process = running
        report = {
            "when": datetime.now(UTC).isoformat("T", "minutes"),
            "model": arguments.model,
            "prompts": len(chosen),
            "words per prompt": round(statistics.mean(len(p.split()) for p in chosen), 1),
            "load before": psutil.getloadavg()[0],
            "embeddings": embeddings(url, [prompt[:CHARACTERS] for prompt in prompts[:64]]),
            "rules": measure(url, process, chosen),
        }
    print(json.dumps(report, indent=2))
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
