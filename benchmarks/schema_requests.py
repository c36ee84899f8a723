"""Thousands of requests made from our own OpenAPI documents: none is to get a 5xx.

    pip install schemathesis
    python -m benchmarks.schema_requests
    python -m benchmarks.schema_requests --examples 40 --checks not_a_server_error

Starts a server with tokens and one endpoint of the default model, and lets Schemathesis read both
documents, that of the whole server and that of the endpoint, and send what they allow and what they
do not, as an administrator: another one every second, for what manages users, tokens and
permissions may well take the rights of who asks. Checks that no answer is a 5xx, and that statuses,
content types and bodies are those that the documents name. Writes results/schema_requests.json
beside this script, and fails if a check did.
"""

from __future__ import annotations

import argparse
import json
import os
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
TOKENS = "tokens.txt"
ADMINISTRATORS = [f"administrator-{number}" for number in range(1000)]
ACCOUNTS = "token|permissions|scim|session"
PARTS = {
    "server": ("/openapi.json", ["--exclude-path-regex", ACCOUNTS]),
    "endpoint": (f"/api/2.0/serving-endpoints/{NAME}/openapi", []),
    "accounts": ("/openapi.json", ["--include-path-regex", ACCOUNTS]),
}


def run(part: str, url: str, folder: Path, options: argparse.Namespace) -> Any:
    """What Schemathesis tells of one part, with the tokens in `folder`."""
    out = folder / f"{part}.ndjson"
    path, choice = PARTS[part]
    document, tokens = folder / f"{part}.json", folder / TOKENS
    authorization = {"Authorization": f"Bearer {tokens.read_text().split()[-1]}"}
    answer = httpx.get(f"{url}{path}", headers=authorization, timeout=60).raise_for_status()
    document.write_bytes(answer.content)
    command = [options.schemathesis, "run", str(document), "--url", url, *choice]
    command += ["--checks", options.checks, "--phases", "examples,coverage,fuzzing"]
    command += ["--max-examples", str(options.examples)]
    command += ["--seed", "1", "--workers", "2", "--continue-on-failure", "--no-color"]
    command += ["--request-timeout", "60", "--max-time", str(options.seconds)]
    command += ["--report-ndjson-path", str(out)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "SCHEMATHESIS_HOOKS": "schema_administrators",
        "DROPLESS_TOKENS": str(tokens),
    }
    done = subprocess.run(  # which leaves files of its own where it runs
        command, check=False, capture_output=True, text=True, cwd=folder, env=environment
    )
    if not out.exists():
        raise SystemExit(f"schemathesis did not run: {done.stdout}{done.stderr}")
    statuses = Counter(_statuses(out))
    if not statuses:
        raise SystemExit(f"schemathesis sent nothing: {done.stdout}{done.stderr}")
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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = tokens_of(folder, *ADMINISTRATORS, may="CAN_MANAGE")
        (folder / TOKENS).write_text("\n".join(tokens.values()))
        entity = {"model": options.model, "engine": {"max_model_len": 256}}
        document = {"endpoints": [{"name": NAME, "served_entities": [entity]}]}
        with served(document, folder) as (url, _):
            results = {part: run(part, url, folder, options) for part in options.parts}
            httpx.get(f"{url}/health", timeout=60).raise_for_status()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    report = {**known, "date": datetime.now(UTC).isoformat(timespec="minutes"), **results}
    print(json.dumps(report, indent=1))
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    raise SystemExit(any(result["failed"] for result in results.values()))


if __name__ == "__main__":
    main()
