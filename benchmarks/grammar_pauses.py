"""The longest pause of a stream while the engine compiles another request's grammar.

    python -m benchmarks.grammar_pauses

The default model behind `dropless serve`; one user's stream, and a second later another's request
with a JSON schema: none, of 10 and of 200 properties, and of 300 that are required, for which two
seconds of search find no output. Half a second after that a third user asks for an answer of 32
tokens at most to a small schema, which the engine knows. Writes results/grammar_pauses.json beside
this script, or `--out`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from benchmarks.machine import machine
from benchmarks.served import served

from dropless.checkpoints.catalogue import default_model

RESULT = Path(__file__).parent / "results" / "grammar_pauses.json"
MODEL = "model"
TOKENS, ROUNDS, AFTER_S, THIRD_AFTER_S = 150, 5, 1.0, 1.5
KNOWN = (1, "known", 32)  # properties and salt of a schema that is asked for before; tokens
CASES = {"none": 0, "10 properties": 10, "200 properties": 200, "300 required": -300}


def schema(properties: int, salt: str) -> dict[str, Any]:
    """`salt` makes it one that nobody has compiled yet; required if there are less than none."""
    names = [f"property_{salt}_{i}" for i in range(abs(properties))]
    return {
        "type": "object",
        "properties": {name: {"type": "string", "maxLength": 20} for name in names},
        "required": names if properties < 0 else [],
    }


def ask(
    client: httpx.Client, properties: int, salt: str, max_tokens: int = 600
) -> tuple[int, float]:
    """The status and seconds of a short request: of 4 tokens without a schema."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
    }
    if properties:
        wrapped = {"name": "s", "schema": schema(properties, salt)}
        body |= {"response_format": {"type": "json_schema", "json_schema": wrapped}}
        body["max_tokens"] = max_tokens
    started = time.perf_counter()
    status = client.post("/v1/chat/completions", json=body).status_code
    return status, time.perf_counter() - started


def longest_pause(client: httpx.Client, properties: int, salt: str) -> dict[str, Any]:
    """Seconds between two chunks of the stream, once it runs, and what the other request got."""
    other: dict[str, Any] = {}
    third: dict[str, Any] = {}

    def ask_meanwhile() -> None:
        time.sleep(AFTER_S)
        other["status"], other["seconds"] = ask(client, properties, salt)

    def ask_for_what_is_known() -> None:
        time.sleep(THIRD_AFTER_S)
        third["known_status"], third["known_seconds"] = ask(client, *KNOWN)

    body: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": TOKENS}
    body |= {"min_tokens": TOKENS, "stream": True}
    threads = [threading.Thread(target=run) for run in (ask_meanwhile, ask_for_what_is_known)]
    for thread in threads:
        thread.start()
    with client.stream("POST", "/v1/completions", json=body) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
        stamps = [time.perf_counter() for _ in lines]
    for thread in threads:
        thread.join()
    pauses = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    return {"longest_s": max(pauses), "median_s": statistics.median(pauses), **other, **third}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rows = []
    entity = {"name": MODEL, "model": default_model().name}
    document = {"endpoints": [{"name": MODEL, "served_entities": [entity]}]}
    with (
        tempfile.TemporaryDirectory() as folder,
        served(document, Path(folder)) as (url, _),
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        ask(client, *KNOWN)  # the first grammar takes more
        for name, properties in CASES.items():
            runs = [
                longest_pause(client, properties, f"{name[:2]}{turn}") for turn in range(ROUNDS)
            ]
            rows.append({"other": name, "runs": runs})
            longest = [round(run["longest_s"] * 1e3) for run in runs]
            known = [round(run["known_seconds"], 1) for run in runs]
            print(f"{name:16s} longest pauses {longest} ms, known grammar {known} s", flush=True)
    arguments.out.write_text(json.dumps({**machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
