"""Greedy continuations of one model by Dropless and by llama.cpp, and where they part."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dropless import LLM, SamplingParams
from dropless.checkpoints.open import open_checkpoint
from dropless.engine.messages import TokenLogprob
from dropless.text.tokenizer import load_tokenizer
from tests.checkpoints.llama_cpp_witness import WitnessStep

MAX_TOKENS = 16
TOP = 20

TEXT_PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea,",
    "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to",
    "In 1969, the first human being",
    "To make a cup of tea, first",
    "The opposite of hot is cold. The opposite of day is",
    "Monday, Tuesday, Wednesday,",
    "1, 2, 3, 4, 5,",
    "Photosynthesis is the process by which",
    "The largest planet in the solar system is",
    "She opened the old wooden door and",
    "According to the theory of evolution,",
    "Roses are red, violets are",
    "The recipe calls for two cups of flour,",
    "Q: What is the boiling point of water?\nA:",
    "My favourite season is autumn because",
    "An old lighthouse stood on the cliff. Every night,",
    "The history of computing began",
)
CODE_PROMPTS = (
    "def fibonacci(n):\n",
    "def is_prime(number: int) -> bool:\n",
    "import numpy as np\n\ndef normalize(vector):\n",
    "class Stack:\n    def __init__(self):\n",
    "# Read a CSV file and print each row\nimport csv\n",
    "def reverse_string(text):\n    return",
    "for i in range(10):\n    print(",
    "SELECT name, age FROM users WHERE",
    "function add(a, b) {\n",
    "#include <stdio.h>\n\nint main(void) {\n",
    "public class Main {\n    public static void main(",
    "fn main() {\n    let numbers = vec![1, 2, 3];\n",
    "def binary_search(items, target):\n    low, high = 0, len(items) - 1\n",
    "#!/bin/bash\n# Count the lines of every file\nfor file in",
    "def gcd(a, b):\n    while b:\n",
    "const express = require('express');\n",
    'package main\n\nimport "fmt"\n\nfunc main() {\n',
    "try:\n    value = int(text)\nexcept",
    "<!DOCTYPE html>\n<html>\n<head>\n",
    "def merge_sort(items):\n    if len(items) <= 1:\n",
)


@dataclass(frozen=True, slots=True)
class Parting:
    """The first token at which the two differ, after the same tokens before it. A gap is how much
    likelier, in natural logarithms, one finds its own choice than the other's; infinite if the
    other's is not among its `TOP` best."""

    prompt: str
    place: int
    our_id: int
    their_id: int
    our_gap: float
    their_gap: float
    our_rank: int  # of their choice among ours, and the other way round: 1 is the runner-up
    their_rank: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two sets of continuations compare. `distance` is by how much the two differ in the
    log-probability of a token both chose, over all tokens before a parting."""

    prompts: int
    partings: list[Parting]
    median_distance: float
    largest_distance: float

    @property
    def agreed(self) -> int:
        """How many prompts both continue alike to the end."""
        return self.prompts - len(self.partings)


def encode(gguf_path: Path, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids by the model's own tokenizer."""
    tokenizer = load_tokenizer(gguf_path)
    return [tokenizer.encode(prompt, add_bos=tokenizer.add_bos) for prompt in prompts]


def dropless_greedy(
    gguf_path: Path, prompts: Sequence[list[int]], **settings: Any
) -> list[list[TokenLogprob]]:
    """`MAX_TOKENS` greedy tokens for each prompt, all in one batch; `settings` are the engine's."""
    ends = open_checkpoint(gguf_path).eos_token_ids
    params = SamplingParams(
        temperature=0.0,
        max_tokens=MAX_TOKENS,
        logprobs=TOP,
        ignore_eos=True,
        logit_bias=dict.fromkeys(ends, -100.0),  # llama.cpp's ignore_eos never picks them
    )
    with LLM(gguf_path, **settings) as llm:
        return [result.logprobs or [] for result in llm.generate(list(prompts), params)]


def compare(
    prompts: Sequence[str],
    ours: Sequence[Sequence[TokenLogprob]],
    theirs: Sequence[Sequence[WitnessStep]],
) -> Agreement:
    """Each prompt's continuations token by token, up to where they part."""
    partings, distances = [], []
    for prompt, our_steps, their_steps in zip(prompts, ours, theirs, strict=True):
        for place, (our, their) in enumerate(zip(our_steps, their_steps, strict=True)):
            if our.token_id != their.token_id:
                partings.append(_parting(prompt, place, our, their))
                break
            distances.append(abs(our.logprob - their.logprobs[their.token_id]))
    return Agreement(len(prompts), partings, statistics.median(distances), max(distances))


def _parting(prompt: str, place: int, our: TokenLogprob, their: WitnessStep) -> Parting:
    our_top = dict(our.top)
    return Parting(
        prompt,
        place,
        our.token_id,
        their.token_id,
        our_gap=our.logprob - our_top.get(their.token_id, float("-inf")),
        their_gap=their.logprobs[their.token_id] - their.logprobs.get(our.token_id, float("-inf")),
        our_rank=_rank(our_top, their.token_id),
        their_rank=_rank(their.logprobs, our.token_id),
    )


def _rank(logprobs: dict[int, float], token_id: int) -> int:
    """How many tokens are likelier than this one; `TOP` if it is not among them."""
    if token_id not in logprobs:
        return TOP
    return sum(other > logprobs[token_id] for other in logprobs.values())
