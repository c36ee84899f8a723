"""Metrics of a real server, as Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.server_process import ServerProcess
from tests.server.telemetry.conftest import DENSE, MIXTURE

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(server: ServerProcess) -> Samples:
    response = httpx.get(f"{server.url}/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return read(response.text)


def grown(server: ServerProcess, act: Callable[[], object]) -> Callable[..., float]:
    """How much a sample of these labels grew by what was done."""
    before = scrape(server)
    act()
    after = scrape(server)

    def by(name: str, entity: str | None = DENSE, **labels: str) -> float:
        if entity is not None:
            labels |= {"endpoint_name": entity, "served_entity_name": entity}
        key = (name, frozenset(labels.items()))
        assert key in after, [k for k in after if k[0] == name]
        return after[key] - before.get(key, 0.0)

    return by


def chat(server: ServerProcess, model: str = DENSE, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6}
    return httpx.post(
        f"{server.url}/v1/chat/completions", json={**body, "ignore_eos": True, **fields}
    )


def test_a_call_is_counted_and_timed(telling: ServerProcess) -> None:
    usages: list[dict[str, Any]] = []

    def act() -> None:
        usages.append(chat(telling).json()["usage"])
        usages.append(chat(telling, n=2).json()["usage"])

    by = grown(telling, act)
    assert by("request_count_total") == 2
    assert by("dropless_requests_total", status="200") == 2
    assert by("dropless_request_success_total", finished_reason="length") == 3
    for name in (
        "request_latency_ms",
        "model_queue_time_ms",
        "dropless_request_queue_time_seconds",
        "dropless_time_to_first_token_seconds",
        "dropless_time_per_output_token_seconds",
        "dropless_e2e_request_latency_seconds",
    ):
        assert by(f"{name}_count") == 2
        assert by(f"{name}_sum") > 0
    assert by("dropless_time_per_output_token_seconds_sum") < 2
    prompts, answers = (
        sum(usage[key] for usage in usages) for key in ("prompt_tokens", "completion_tokens")
    )
    assert by("dropless_request_prompt_tokens_sum") == prompts
    assert by("dropless_request_generation_tokens_sum") == answers == 18
    assert by("dropless_generation_tokens_total") == 18
    assert by("dropless_prefix_cache_queries_total") == by("dropless_prompt_tokens_total") > 0
    assert by("dropless_engine_steps_total") > 0
    assert by("dropless_requests_in_flight", None) == 0


def test_errors_are_counted_by_who_can_help(telling: ServerProcess) -> None:
    by = grown(telling, lambda: chat(telling, messages="Hi"))
    labels = {"endpoint_name": "", "served_entity_name": ""}  # its endpoint was never read
    assert by("request_4xx_count_total", None, **labels) == 1
    assert by("dropless_requests_total", None, status="400", **labels) == 1
    by = grown(telling, lambda: chat(telling, max_tokens=10**6))
    assert by("request_4xx_count_total") == 1


def test_what_callers_make_up_becomes_no_label(telling: ServerProcess) -> None:
    for number in range(3):
        assert chat(telling, f"made up {number}").status_code == 404
    text = httpx.get(f"{telling.url}/metrics").text
    assert "made up" not in text
    assert "local" not in text, "nor does anybody's name"


def test_engines_and_the_machine_are_asked(telling: ServerProcess) -> None:
    samples = scrape(telling)
    labels = frozenset({("endpoint_name", DENSE), ("served_entity_name", DENSE)})
    assert samples["dropless_num_requests_running", labels] == 0
    assert samples["dropless_num_requests_waiting", labels] == 0
    assert samples["dropless_kv_cache_usage_perc", labels] == 0
    assert samples["provisioned_concurrent_requests_total", labels] == 256
    assert samples["dropless_engine_restarts_total", labels] == 0
    assert samples["dropless_num_preemptions_total", labels] == 0
    assert 0 < samples["mem_usage_percentage", frozenset()] < 100
    assert 0 <= samples["cpu_usage_percentage", frozenset()] <= 100


def test_tokens_are_counted_by_expert(telling: ServerProcess) -> None:
    chat(telling, MIXTURE)
    samples = scrape(telling)
    found = {
        (dict(labels)["layer"], dict(labels)["expert"]): value
        for (name, labels), value in samples.items()
        if name == "dropless_expert_tokens_total"
    }
    assert {layer for layer, _ in found} == {"0", "1"}
    by_layer = [sum(v for (own, _), v in found.items() if own == layer) for layer in ("0", "1")]
    assert by_layer[0] == by_layer[1] > 0


def test_the_dashboard_shows_the_load_of_experts(telling: ServerProcess) -> None:
    chat(telling, MIXTURE)
    deadline = time.monotonic() + 10
    while True:
        body = httpx.get(f"{telling.url}/api/2.0/dashboard/expert-load").json()
        if body["served_entities"]:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    [served] = body["served_entities"]
    assert (served["served_entity"], served["endpoint"]) == (MIXTURE, MIXTURE)
    assert served["experts_per_token"] == 2
    assert [len(row) for row in served["total"]] == [4, 4]


def test_the_platforms_metrics_of_one_endpoint(telling: ServerProcess) -> None:
    chat(telling, MIXTURE)
    chat(telling, DENSE)
    response = httpx.get(f"{telling.url}/api/2.0/serving-endpoints/{DENSE}/metrics")
    assert response.status_code == 200
    samples = read(response.text)
    assert {dict(labels).get("endpoint_name", DENSE) for _, labels in samples} == {DENSE}
    assert {name for name, _ in samples} == {
        "cpu_usage_percentage",
        "mem_usage_percentage",
        "provisioned_concurrent_requests_total",
        "request_count_total",
        "request_4xx_count_total",
        "request_5xx_count_total",
        *(f"request_latency_ms_{part}" for part in ("bucket", "count", "sum")),
        *(f"model_queue_time_ms_{part}" for part in ("bucket", "count", "sum")),
    }
    assert httpx.get(f"{telling.url}/api/2.0/serving-endpoints/none/metrics").status_code == 404


@pytest.mark.parametrize("path", ["/metrics", "/api/2.0/serving-endpoints/dense/metrics"])
def test_only_get(telling: ServerProcess, path: str) -> None:
    assert httpx.post(telling.url + path).status_code == 405
