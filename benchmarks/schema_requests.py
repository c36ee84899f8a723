"""Thousands of requests made from our own OpenAPI documents: none is to get a 5xx.

    pip install schemathesis
    python -m benchmarks.schema_requests
    python -m benchmarks.schema_requests --examples 40 --checks not_a_server_error

Starts a server with tokens and one endpoint of the default model, and lets Schemathesis read both
documents, that of the whole server and that of the endpoint, and send what they allow and what they
do not, as an administrator. What manages users, tokens and permissions comes last, with a token of
its own: it may well take its own rights away, and then gets 401 or 403. Checks that no answer is a
5xx, and that statuses, content types and bodies are those that the documents name. Writes
results/schema_requests.json beside this script, and fails if a check did.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from benchmarks.served import served, tokens_of

RESULTS = Path(__file__).parent / "results" / "schema_requests.json"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"
CHECKS += ",response_schema_conformance"
NAME = "assistant"
ACCOUNTS = "token|permissions|scim|session"
PARTS = {
    "server": ("/openapi.json", ["--exclude-path-regex", ACCOUNTS]),
    "endpoint": (f"/api/2.0/serving-endpoints/{NAME}/openapi", []),
    "accounts": ("/openapi.json", ["--include-path-regex", ACCOUNTS]),
}


def run(part: str, url: str, token: str, options: argparse.Namespace, out: Path) -> Any:
    """What Schemathesis tells of one part."""
    document, choice = PARTS[part]
    command = [options.schemathesis, "run", f"{url}{document}", "--url", url, *choice]
    command += ["--header", f"Authorization: Bearer {token}", "--checks", options.checks]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(options.examples)]
    command += ["--seed", "1", "--workers", "2", "--continue-on-failure", "--no-color"]
    command += ["--request-timeout", "60", "--max-time", str(options.seconds)]
    command += ["--report-ndjson-path", str(out)]
    done = subprocess.run(  # which leaves files of its own where it runs
        command, check=False, capture_output=True, text=True, cwd=out.parent
    )
    if not out.exists():
        raise SystemExit(f"schemathesis did not run: {done.stdout}{done.stderr}")
    statuses = Counter(_statuses(out))
    summary = done.stdout[done.stdout.rfind("= SUMMARY =") :]
    return {
        "requests": sum(statuses.values()),
        "statuses": dict(sorted(statuses.items())),
        "failed": done.returncode != 0,
        "summary": [
            line
            for line in summary.splitlines()[1:]
            if line.strip("= ") and "eport" not in line and "NDJSON" not in line
        ],
    }


def _statuses(events: Path) -> list[int]:
    """Of all answers in a file of events."""
    found: list[int] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "status_code" in value and "elapsed" in value:
                found.append(value["status_code"])
            for each in value.values():
                look(each)
        elif isinstance(value, list):
            for each in value:
                look(each)

    for line in events.read_text().splitlines():
        look(json.loads(line))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--examples", type=int, default=25, help="of each operation")
    parser.add_argument("--seconds", type=int, default=300, help="the most for each part")
    parser.add_argument("--checks", default=CHECKS)
    parser.add_argument("--schemathesis", default=shutil.which("schemathesis") or "schemathesis")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = tokens_of(folder, *PARTS, may="CAN_MANAGE")
        entity = {"model": options.model, "engine": {"max_model_len": 256}}
        document = {"endpoints": [{"name": NAME, "served_entities": [entity]}]}
        with served(document, folder) as (url, _):
            results = {
                part: run(part, url, tokens[part], options, folder / f"{part}.ndjson")
                for part in PARTS
            }
            httpx.get(f"{url}/health", timeout=60).raise_for_status()
    report = {"date": datetime.now(UTC).isoformat(timespec="minutes"), **results}
    print(json.dumps(report, indent=1))
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    raise SystemExit(any(result["failed"] for result in results.values()))


if __name__ == "__main__":
    main()
