"""/v1/embeddings through a real server with the real model, beside transformers' own."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch

from dropless.checkpoints.catalogue import catalogue
from dropless.checkpoints.model_cache import cached_model
from dropless.encoder.client import EMBEDDING_MODEL
from dropless.errors import SettingsError
from dropless.server.configuration.endpoint_settings import EndpointSettings
from dropless.server.endpoints.registry import EndpointRegistry
from dropless.server.quotas.quotas import Quotas
from tests.server.in_process import InProcess, serving

TEXTS = [
    "A river runs through the town.",
    "The stream flows past the village; it is cold and clear.",
    "Compile the kernel with optimisations.",
    "Grüße aus 漢字 🦜",
    "word " * 200,
]
EMBEDS = {"name": "minilm", "served_entities": [{"model": EMBEDDING_MODEL}]}


@pytest.fixture(scope="module")
def model_file() -> Path:
    found = cached_model(catalogue()[EMBEDDING_MODEL])
    if found is None:
        pytest.skip(f"needs the embedding model: dropless pull {EMBEDDING_MODEL}")
    return found


@pytest.fixture(scope="module")
def server(model_file: Path) -> Iterator[InProcess]:
    assert model_file
    limit = {"key": "endpoint", "tokens": 100, "renewal_period": "minute"}
    limited = {**EMBEDS, "name": "limited", "rate_limits": [limit]}
    with serving([EMBEDS, limited], quotas=Quotas()) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: InProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def reference(model_file: Path) -> np.ndarray[Any, Any]:
    """transformers' model, one text at a time; its mean over tokens, of length 1."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_file.parent)
    model = AutoModel.from_pretrained(model_file.parent)
    rows = []
    with torch.no_grad():
        for text in TEXTS:
            given = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            rows.append(model(**given).last_hidden_state[0].mean(0))
    return torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()


def embed(client: openai.OpenAI, **fields: Any) -> np.ndarray[Any, Any]:
    answer = client.embeddings.create(model="minilm", **fields)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data])


def test_vectors_are_those_of_transformers(
    client: openai.OpenAI, reference: np.ndarray[Any, Any]
) -> None:
    for vectors in (
        embed(client, input=TEXTS),
        embed(client, input=TEXTS, encoding_format="float"),
        np.concatenate([embed(client, input=text) for text in TEXTS]),
    ):
        assert vectors.shape == (len(TEXTS), 384)
        cosine = (vectors * reference).sum(1)
        assert cosine.min() > 1 - 1e-5
        assert np.abs(vectors - reference).max() < 1e-5
    assert reference[0] @ reference[1] > reference[0] @ reference[2]


def test_a_text_is_not_changed_by_its_neighbours(client: openai.OpenAI) -> None:
    many = embed(client, input=[*TEXTS, *TEXTS[::-1]])
    assert np.abs(many[: len(TEXTS)] - many[-len(TEXTS) :][::-1]).max() < 1e-6


def test_token_ids_mean_their_text(client: openai.OpenAI) -> None:
    whole = embed(client, input="a river")
    for ids in ([1037, 2314], [101, 1037, 2314, 102], [[1037, 2314]]):
        assert np.abs(embed(client, input=ids) - whole).max() < 1e-6


def test_base64_is_the_numbers_bytes(server: InProcess) -> None:
    url = f"{server.url}/serving-endpoints/minilm/invocations"
    bodies = [
        httpx.post(url, json={"input": ["a river"], "encoding_format": name}, timeout=60).json()
        for name in ("float", "base64")
    ]
    numbers, encoded = (body["data"][0]["embedding"] for body in bodies)
    assert np.frombuffer(base64.b64decode(encoded), "<f4").tolist() == numbers
    assert bodies[0]["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert (bodies[0]["object"], bodies[0]["model"]) == ("list", "minilm")


def test_an_instruction_stands_before_every_text(client: openai.OpenAI) -> None:
    extra = {"instruction": "Represent this for search:"}
    with_it = embed(client, input=["a river", "a road"], extra_body=extra)
    written = embed(client, input=[f"{extra['instruction']} {t}" for t in ("a river", "a road")])
    assert np.abs(with_it - written).max() < 1e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": []}, "input must be a string"),
        ({"input": ["a", 5]}, "input must be a string"),
        ({"input": ["a", ""]}, r"input\[1\] is empty"),
        ({"input": ["a"] * 2049}, "2049 texts; send at most 2048"),
        ({"input": "word " * 300}, "input has 302 tokens, but all-minilm-l6-v2 reads 256"),
        ({"input": [5, 90000]}, "token id 90000, which all-minilm-l6-v2 does not know"),
        ({"input": "a", "dimensions": 64}, "dimensions is 64; this model's vectors have 384"),
        ({"input": [1], "extra_body": {"instruction": "x"}}, "cannot be put before token ids"),
        ({"input": "a", "extra_body": {"temperature": 1}}, "unknown field 'temperature'"),
        ({"input": "a", "model": "none"}, "is not served here"),
    ],
)
def test_wrong_requests(client: openai.OpenAI, fields: dict[str, Any], message: str) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=message):
        client.embeddings.create(**{"model": "minilm", **fields})


def test_who_embeds_does_not_generate(client: openai.OpenAI) -> None:
    user: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.BadRequestError, match="embeds texts and generates none"):
        client.chat.completions.create(model="minilm", messages=user)


def test_limits_count_the_texts_tokens(client: openai.OpenAI) -> None:
    assert client.embeddings.create(model="limited", input="word " * 60).usage.total_tokens == 62
    with pytest.raises(openai.RateLimitError):
        client.embeddings.create(model="limited", input="word " * 60)


def test_what_is_known_of_a_call(server: InProcess, client: openai.OpenAI) -> None:
    answer = client.embeddings.with_raw_response.create(model="minilm", input=["a river", "a road"])
    asked = answer.headers["x-request-id"]
    calls = {call.request_id: call for call in server.recorder.wait_for(1)}
    while asked not in calls:
        calls = {c.request_id: c for c in server.recorder.wait_for(len(calls) + 1)}
    call = calls[asked]
    assert (call.api, call.status_code, call.entity_name) == ("embeddings", 200, EMBEDDING_MODEL)
    assert call.usage is not None
    assert (call.usage.prompt_tokens, call.usage.completion_tokens) == (8, 0)
    assert call.response_body is not None
    assert len(call.response_body["data"]) == 2
    assert call.execution_s > 0


def test_endpoints_tell_what_they_do(server: InProcess) -> None:
    listed = httpx.get(f"{server.url}/api/2.0/serving-endpoints/minilm").json()
    assert listed["task"] == "llm/v1/embeddings"
    assert listed["state"]["ready"] == "READY"
    models = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert next(m for m in models if m["id"] == "minilm")["max_model_len"] == 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guardrails": {"input": {"safety": True}}}, "guardrails and system_prompt are for those"),
        ({"served_entities": [{"model": EMBEDDING_MODEL, "engine": {"threads": 1}}]}, "no engine"),
    ],
)
def test_settings_that_mean_nothing_there(change: dict[str, Any], message: str) -> None:
    settings = EndpointSettings.model_validate({**EMBEDS, **change}, strict=False)
    with pytest.raises(SettingsError, match=message):
        EndpointRegistry([settings])
