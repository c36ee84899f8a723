"""A real model, greedy, beside llama.cpp on the same file.

llama.cpp rounds activations to 8 bits where it multiplies with a block format. On a copy of the
same numbers in float32 it does not, and there it must give our tokens and our log-probabilities;
on the file itself it may part from us, but only where the candidates are nearly tied.
`benchmarks/llama_cpp_agreement.py` records the figures of all prompts and of larger models, which
take minutes; here some prompts of the default model do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dropless.checkpoints.catalogue import default_model
from dropless.checkpoints.model_cache import cached_model
from dropless.engine.messages import TokenLogprob
from tests.checkpoints.llama_cpp_witness import WitnessStep, llama_cpp_greedy_many
from tests.engine.agreement import (
    MAX_TOKENS,
    TEXT_PROMPTS,
    TOP,
    Agreement,
    compare,
    dropless_greedy,
    encode,
)
from tests.engine.float32_gguf import write_float32_gguf

pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.model, pytest.mark.slow]

FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32", "quantization": "none"},
    "default": {},  # fp16 weights, where the machine has them
}
EXACT = {"float32": 2e-3, "default": 2e-2}  # the most by which a log-probability may differ
THREADS = 1  # llama.cpp's wait for one another in a loop: two on a busy machine take far longer
TEXTS = TEXT_PROMPTS[::4]
ALIKE = 0.8  # the least share of prompts that both continue alike to the end
NEAR_TIE = 0.5  # rounding to 8 bits moves log-probabilities by up to 0.25 here

Continuations = list[list[TokenLogprob]]
Witness = list[list[WitnessStep]]


def greedy(path: Path, prompts: Sequence[str], form: str) -> Continuations:
    return dropless_greedy(
        path, encode(path, prompts), device="cpu", threads=THREADS, **FORMATS[form]
    )


def check_near_ties(found: Agreement) -> None:
    for parting in found.partings:
        assert parting.our_gap < NEAR_TIE, parting
        assert parting.their_gap < NEAR_TIE, parting
    assert found.median_distance < 0.05


@pytest.fixture(scope="module")
def smollm2() -> Path:
    model = default_model()
    path = cached_model(model)
    if path is None:
        pytest.skip(f"{model.name} is not in the model cache; `dropless pull` fetches it")
    return path


@pytest.fixture(scope="module")
def as_it_comes(smollm2: Path) -> Witness:
    return llama_cpp_greedy_many(smollm2, encode(smollm2, TEXTS), MAX_TOKENS, TOP, THREADS)


@pytest.fixture(scope="module")
def in_float32(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Witness:
    copy = tmp_path_factory.mktemp("float32") / "copy.gguf"
    write_float32_gguf(smollm2, copy)
    steps = llama_cpp_greedy_many(copy, encode(smollm2, TEXTS), MAX_TOKENS, TOP, THREADS)
    copy.unlink()
    return steps


@pytest.mark.parametrize("form", FORMATS)
def test_smollm2(form: str, smollm2: Path, as_it_comes: Witness, in_float32: Witness) -> None:
    ours = greedy(smollm2, TEXTS, form)
    exact = compare(TEXTS, ours, in_float32)
    assert exact.agreed >= ALIKE * len(TEXTS)
    assert exact.largest_distance < EXACT[form]
    for parting in exact.partings:
        assert parting.our_gap < 2 * EXACT[form], parting
    check_near_ties(compare(TEXTS, ours, as_it_comes))
