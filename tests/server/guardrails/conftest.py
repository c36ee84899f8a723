"""One server with an endpoint for each kind of rule, all on one tiny engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from dropless.checkpoints.catalogue import catalogue
from dropless.checkpoints.model_cache import cached_model
from dropless.encoder.client import EMBEDDING_MODEL
from tests.server.in_process import InProcess, serving
from tests.server.tiny_model import tiny_endpoint

RULES: dict[str, dict[str, Any]] = {
    "open": {},
    "safe": {"input": {"safety": True}, "output": {"safety": True}},
    "blocks-pii": {
        "input": {"pii": {"behavior": "BLOCK"}},
        "output": {"pii": {"behavior": "BLOCK"}},
    },
    "masks-pii": {
        "input": {"pii": {"behavior": "MASK"}},
        "output": {"pii": {"behavior": "MASK"}},
    },
    "masks-answers": {"output": {"pii": {"behavior": "MASK"}}},
    "masks-names": {"input": {"pii": {"behavior": "MASK", "entities": ["PERSON"]}}},
    "no-words": {
        "input": {"invalid_keywords": ["SuperSecretProject", "blue river"]},
        "output": {"invalid_keywords": ["blue river"]},
    },
    "no-injections": {"input": {"prompt_injection": True}},
    "topics": {
        "input": {"valid_topics": ["cooking and recipes", "gardening"]},
        "output": {"valid_topics": ["cooking and recipes"]},
    },
}


@pytest.fixture(scope="session")
def guarded(model_folder: Path) -> Iterator[InProcess]:
    if cached_model(catalogue()[EMBEDDING_MODEL]) is None:
        pytest.skip(f"needs the embedding model: dropless pull {EMBEDDING_MODEL}")
    endpoints = [
        {**tiny_endpoint(str(model_folder)), "name": name, "guardrails": rules}
        for name, rules in RULES.items()
    ]
    with serving(endpoints) as server:
        yield server


@pytest.fixture(scope="session")
def client(guarded: InProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="none", max_retries=0)
