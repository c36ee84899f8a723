"""One server with an endpoint for each kind of rule, all on one tiny engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from dropless.checkpoints.catalogue import catalogue
from dropless.checkpoints.model_cache import cached_model
from dropless.encoder.client import EMBEDDING_MODEL
from tests.server.server_process import ServerProcess, tiny_endpoint

RULES: dict[str, dict[str, Any]] = {
    "open": {},
    "safe": {"input": {"safety": True}, "output": {"safety": True}},
    "blocks-pii": {"input": {"pii": {"behavior": "BLOCK"}}},
    "blocks-pii-out": {"output": {"pii": {"behavior": "BLOCK"}}},
    "masks-pii": {
        "input": {"pii": {"behavior": "MASK"}},
        "output": {"pii": {"behavior": "MASK"}},
    },
    "masks-names": {"input": {"pii": {"behavior": "MASK", "entities": ["PERSON"]}}},
    "no-words": {
        "input": {"invalid_keywords": ["SuperSecretProject", "blue river"]},
        "output": {"invalid_keywords": ["blue river"]},
    },
    "topics": {"input": {"valid_topics": ["cooking and recipes"]}},
    "topics-out": {"output": {"valid_topics": ["cooking and recipes"]}},
}


@pytest.fixture(scope="session")
def guarded(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    if cached_model(catalogue()[EMBEDDING_MODEL]) is None:
        pytest.skip(f"needs the embedding model: dropless pull {EMBEDDING_MODEL}")
    endpoints = [
        {**tiny_endpoint(str(model_folder)), "name": name, "guardrails": rules}
        for name, rules in RULES.items()
    ]
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "dropless.yaml"
    file.write_text(json.dumps({"data": str(folder / "data"), "endpoints": endpoints}))
    server = ServerProcess(model_folder, file=str(file))
    yield server.wait_until_ready()
    server.close()


@pytest.fixture(scope="session")
def client(guarded: ServerProcess) -> openai.OpenAI:
    return guarded.client(max_retries=0)
