"""llama.cpp as a second witness of a model: greedy ids and log-probabilities of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOGETHER = 10  # prompts that share llama.cpp's steps: it reads the weights once for all of them


@dataclass(frozen=True)
class WitnessStep:
    """One generated token: the id llama.cpp chose, and its top log-probabilities by id."""

    token_id: int
    logprobs: dict[int, float]


def llama_cpp_greedy(
    gguf_path: Path, prompt: list[int], max_tokens: int, top: int = 20, threads: int = 2
) -> list[WitnessStep]:
    """Greedy continuation of the token ids `prompt` by llama.cpp (the xllamacpp wheel)."""
    return llama_cpp_greedy_many(gguf_path, [prompt], max_tokens, top, threads)[0]


def llama_cpp_greedy_many(
    gguf_path: Path, prompts: list[list[int]], max_tokens: int, top: int = 20, threads: int = 2
) -> list[list[WitnessStep]]:
    """The same for several prompts, on one loaded model."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf_path)
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_parallel = min(len(prompts), TOGETHER)
    params.n_ctx = params.n_parallel * (max(map(len, prompts)) + max_tokens + 8)
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.verbosity = 0
    # Its default cache is half precision, which alone moves log-probabilities by about 2e-3.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    with ThreadPoolExecutor(params.n_parallel) as threads_of_callers:
        return list(
            threads_of_callers.map(lambda prompt: _greedy(server, prompt, max_tokens, top), prompts)
        )


def _greedy(server: Any, prompt: list[int], max_tokens: int, top: int) -> list[WitnessStep]:
    body = {
        "prompt": prompt,
        "n_predict": max_tokens,
        "temperature": 0.0,
        "n_probs": top,
        "ignore_eos": True,
        "return_tokens": True,
        "cache_prompt": False,
        "stream": False,
    }
    result = server.handle_completions(body)
    steps = result["choices"][0]["logprobs"]["content"]
    if len(steps) != max_tokens:
        raise RuntimeError(f"llama.cpp reported {len(steps)} tokens of {max_tokens}: {result}")
    return [
        WitnessStep(step["id"], {item["id"]: item["logprob"] for item in step["top_logprobs"]})
        for step in steps
    ]
