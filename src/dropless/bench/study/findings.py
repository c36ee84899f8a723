"""What follows from the serving points of several measurements: curves, ratios, the summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dropless.bench.study import published
from dropless.bench.study.records import Record

DENSE = "dense-132b"


@dataclass(frozen=True, slots=True)
class Curve:
    """The newest point of each number of users, of one model in one place, users ascending."""

    model: str
    points: tuple[dict[str, Any], ...]
    newest: Record

    def rate(self, users: int) -> float | None:
        """Output tokens a second."""
        found = (p["output_tokens_per_s"] for p in self.points if p["users"] == users)
        return next(found, None)

    def rate_within(self, tpot_ms: float) -> float | None:
        """The most output tokens a second of a measured point whose mean TPOT is no longer."""
        rates = [
            p["output_tokens_per_s"]
            for p in self.points
            if p["tpot"] is not None and p["tpot"]["mean"] <= tpot_ms
        ]
        return max(rates, default=None)


def curves(records: Sequence[Record], on: str) -> dict[str, Curve]:
    """By model. `records` are the oldest first, so that newer points replace older ones; what was
    measured with another method or precision than the newest does not mix with it."""
    found: dict[str, Curve] = {}
    for record in records:
        if record["on"] != on:
            continue
        model = record["model"]
        points = {point["users"]: point for point in record["points"]}
        if model in found and _method(found[model].newest) == _method(record):
            points = {point["users"]: point for point in found[model].points} | points
        ordered = tuple(points[users] for users in sorted(points))
        found[model] = Curve(model, ordered, record)
    return found


def speed_up(curve: Curve, over: Curve) -> dict[int, float]:
    """Ratio of output tokens a second, by users, where both were measured."""
    ratios = {}
    for point in curve.points:
        base = over.rate(point["users"])
        if base:
            ratios[point["users"]] = point["output_tokens_per_s"] / base
    return ratios


def published_speed_up(model: str, users: int) -> float:
    """Interpolated over the logarithm of users."""
    at = np.log(np.array(published.USERS, dtype=float))
    return float(np.interp(np.log(users), at, published.SPEED_UPS[model]))


def _method(record: Record) -> tuple[object, ...]:
    names = ("ranks", "tiny", "input_tokens", "output_tokens")
    return (record["machine"]["gpu"], *(record[name] for name in names))
