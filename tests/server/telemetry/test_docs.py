"""The dashboard for Grafana and docs/observability.md, held to what a server tells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx

from dropless.server.telemetry.settings import TelemetrySettings
from tests.server.server_process import ServerProcess
from tests.server.telemetry.conftest import MIXTURE

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "observability.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana" / "dropless.json").read_text())
OF_GPUS = {"gpu_usage_percentage", "gpu_mem_usage_percentage"}
FUNCTIONS = {"rate", "increase", "sum", "avg", "max", "histogram_quantile", "by", "label_values"}
LABELS = {"endpoint_name", "served_entity_name", "status", "finished_reason", "le", "layer"}
LABELS |= {"expert", "gpu"}

SPANS = {"guardrails", "queue", "prefill", "decode"}  # which the page lists too


def told(server: ServerProcess) -> set[str]:
    """Names of all samples, once there has been a call of each kind."""
    body = {"model": MIXTURE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    for _ in range(2):
        httpx.post(f"{server.url}/v1/chat/completions", json={**body, "ignore_eos": True})
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return OF_GPUS | {re.split("[{ ]", line)[0] for line in lines if not line.startswith("#")}


def queries() -> list[str]:
    targets = [t["expr"] for panel in DASHBOARD["panels"] for t in panel.get("targets", ())]
    return targets + [
        v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"
    ]


def names_in(query: str) -> set[str]:
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", query)
    return set(re.findall(r"[a-z_][a-z0-9_]*", bare)) - FUNCTIONS - LABELS


def test_every_query_of_the_dashboard_names_what_there_is(telling: ServerProcess) -> None:
    names = set().union(*map(names_in, queries()))
    assert len(names) > 15
    assert names <= told(telling), names - told(telling)


def test_panels_lie_beside_each_other() -> None:
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not places & own, panel["title"]
        assert at["x"] + at["w"] <= 24
        places |= own
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_page_names_every_metric_and_nothing_else(telling: ServerProcess) -> None:
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in told(telling)}
    families = {name for name in families if not name.startswith(("python_", "process_"))}
    table = {
        name
        for line in PAGE.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z0-9_]+)`", line.split("|")[1])
    }
    listed = table - set(TelemetrySettings.model_fields) - SPANS
    assert families == {name for name in listed if "." not in name}


def test_the_page_names_every_key() -> None:
    for key in TelemetrySettings.model_fields:
        assert f"`{key}`" in PAGE or f"{key}:" in PAGE, key
