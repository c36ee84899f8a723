"""What metrics and traces cost a call, and what a scrape costs.

    python benchmarks/telemetry.py

Processor time of the event loop's thread for a call that has all there is to tell; traces go to a
collector that is not there, as their thread does that. A scrape runs on a thread of its own. Writes
results/telemetry.json beside this script.
"""

from __future__ import annotations

import asyncio
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from dropless.server.call import Call, CallObserver
from dropless.server.endpoints.registry import EndpointRegistry
from dropless.server.generation import Timings, Usage
from dropless.server.telemetry.metrics import Metrics
from dropless.server.telemetry.settings import TelemetrySettings
from dropless.server.telemetry.traces import Traces

RESULT = Path(__file__).parent / "results" / "telemetry.json"
CALLS, ROUNDS = 2000, 9
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi" * 200}]}).encode()
ANSWER = {"choices": [{"index": 0, "message": {"content": "Yes."}, "finish_reason": "stop"}]}


def call(number: int) -> Call:
    now = time.time()
    made = Call(f"req-{number}", now - 1.0, "chat", None, "m")
    made.request_body, made.response_body, made.status_code = BODY, ANSWER, 200
    made.usage = Usage(120, 80, 64)
    made.timings = Timings(1.5, 60.0, 900.0, 80.0, 64, 1000.0)
    made.served_entity_id = made.entity_name = "m"
    made.execution_s, made.end_time = 0.99, now
    return made


def microseconds_a_call(observer: CallObserver) -> float:
    times = []
    for _ in range(ROUNDS):
        calls = [call(number) for number in range(CALLS)]
        began = time.thread_time()
        for each in calls:
            observer.began(each)
            observer.ended(each)
        times.append((time.thread_time() - began) / CALLS * 1e6)
    return round(statistics.median(times), 1)


def milliseconds(work: Callable[[], bytes]) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1e3)
    return round(statistics.median(times), 1)


def main() -> None:
    metrics = Metrics(EndpointRegistry([]))
    found = {"metrics_us": microseconds_a_call(metrics.calls)}
    found["scrape_ms"] = milliseconds(lambda: asyncio.run(metrics.text()))
    for ratio, name in ((1.0, "traced"), (0.0, "not_sampled")):
        settings = TelemetrySettings(otlp_endpoint="http://127.0.0.1:9", trace_ratio=ratio)
        found[f"{name}_us"] = microseconds_a_call(Traces(settings))
    document = {
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **found,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    main()
