"""What functions that may be called cost an answer that is text, and what calls cost.

    python -m benchmarks.tool_calls

The default model in this process, the same prompts and as many tokens each: without functions,
with functions that may be called (the text is the same, which is checked) and with nothing but
calls. The three take turns. Writes results/tool_calls.json beside this script.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

from dropless import LLM
from dropless.engine.sampling_params import GrammarSpec, SamplingParams
from dropless.text.tool_grammar import Function, ToolGrammar

RESULT = Path(__file__).parent / "results" / "tool_calls.json"
PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 200, 32, 5
STREAMS = (1, 4)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTIONS = tuple(Function(f"get_weather_{i}", SCHEMA) for i in range(8))


def params(text_first: bool | None) -> SamplingParams:
    """`text_first` None: without functions."""
    grammar = None
    if text_first is not None:
        tools = ToolGrammar(FUNCTIONS, text_first=text_first, parallel=True)
        grammar = GrammarSpec("tool_calls", tools.encode())
    return SamplingParams(
        temperature=0.0, max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS, grammar=grammar
    )


WAYS = {"none": params(None), "may call": params(True), "must call": params(False)}


def measure(llm: LLM, streams: int) -> dict[str, Any]:
    numbers = random.Random(streams)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS + 1):
        prompts = [
            [numbers.randrange(100, 40_000) for _ in range(PROMPT_TOKENS)] for _ in range(streams)
        ]
        for prompt in prompts:  # so that all ways find it in the prefix cache
            llm.generate(prompt, SamplingParams(max_tokens=1))
        texts = {}
        for way in numbers.sample(list(WAYS), len(WAYS)):
            began = time.perf_counter()
            results = llm.generate(prompts, WAYS[way])
            seconds[way].append((time.perf_counter() - began) / NEW_TOKENS)
            assert all(len(result.token_ids) == NEW_TOKENS for result in results)
            texts[way] = [result.token_ids for result in results]
        assert texts["none"] == texts["may call"]
    measured = {way: times[1:] for way, times in seconds.items()}  # the first warms up
    ratios = {
        way: statistics.median(
            mine / none for mine, none in zip(measured[way], measured["none"], strict=True)
        )
        for way in WAYS
    }
    return {
        "streams": streams,
        "ms_per_step": {
            way: round(statistics.median(times) * 1e3, 2) for way, times in measured.items()
        },
        "time_over_none": {way: round(ratio, 3) for way, ratio in ratios.items()},
    }


def main() -> None:
    about = machine()
    rows = []
    with LLM() as llm:
        for streams in STREAMS:
            rows.append(measure(llm, streams))
            print(rows[-1], flush=True)
    result = {"machine": about, "new_tokens": NEW_TOKENS, "rounds": ROUNDS, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
