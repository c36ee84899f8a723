"""MLflow's deployments client, as it is pointed at the platform: by host and token."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MODEL_ID

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0}


@pytest.fixture
def client(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DATABRICKS_HOST", server.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", "none")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from mlflow.deployments import get_deploy_client

    return get_deploy_client("databricks")


def test_predict(client: Any) -> None:
    answer = client.predict(endpoint=MODEL_ID, inputs=CHAT)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"]
    text = client.predict(endpoint=MODEL_ID, inputs={"prompt": ["a", "b"], "max_tokens": 2})
    assert [choice["index"] for choice in text["choices"]] == [0, 1]


def test_predict_stream(client: Any) -> None:
    chunks = list(client.predict_stream(endpoint=MODEL_ID, inputs=CHAT))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    whole = client.predict(endpoint=MODEL_ID, inputs=CHAT)["choices"][0]
    assert (text, chunks[-1]["choices"][0]["finish_reason"]) == (
        whole["message"]["content"],
        whole["finish_reason"],
    )


def test_errors_come_with_their_message(client: Any) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(Exception, match="temperature is -1"):
        client.predict(endpoint=MODEL_ID, inputs={**CHAT, "temperature": -1})
    with pytest.raises((MlflowException, OSError), match=r"'none' is not served here|404"):
        client.predict(endpoint="none", inputs=CHAT)


def test_an_endpoint_from_its_making_to_its_end(client: Any, server: ServerProcess) -> None:
    [before] = client.list_endpoints()
    assert (before["name"], before["state"]["ready"]) == (MODEL_ID, "READY")
    entity = before["config"]["served_entities"][0]
    config = {
        "served_entities": [
            {
                "name": "same",
                "entity_name": entity["entity_name"],
                "engine": entity["engine"],
                "workload_size": "Small",
                "scale_to_zero_enabled": False,
            }
        ],
    }
    made = client.create_endpoint(config={"name": "made", "config": config, "tags": [{"key": "a"}]})
    try:
        assert made["name"] == "made"
        deadline = time.monotonic() + 60
        while client.get_endpoint("made")["state"]["ready"] != "READY":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        answer = client.predict(endpoint="made", inputs=CHAT)
        same = client.predict(endpoint=MODEL_ID, inputs=CHAT)
        assert answer["choices"] == same["choices"]
        config["system_prompt"] = "Be brief."
        changed = client.update_endpoint_config(endpoint="made", config=config)
        assert changed["config"]["config_version"] == 2
        longer = client.predict(endpoint="made", inputs=CHAT)
        assert longer["usage"]["prompt_tokens"] > answer["usage"]["prompt_tokens"]
    finally:
        client.delete_endpoint("made")
    assert [endpoint["name"] for endpoint in client.list_endpoints()] == [MODEL_ID]
    assert len(server.health().json()["engines"]) == 1
