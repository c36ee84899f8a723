"""What was found in a text, and what follows from it by one direction's rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dropless.encoder.messages import Entity
from dropless.server.guardrails.settings import GuardrailParameters

# Every category that the platform names. Of those that are in no verdict nothing is known: there
# is no labelled text to learn them from.
CATEGORIES = (
    "violence-and-hate",
    "sexual-content",
    "criminal-planning",
    "guns-and-illegal-weapons",
    "controlled-substances",
    "suicide-and-self-harm",
)
# Keeps 72 % of questions on an allowed topic and 14 % of others: see benchmarks/README.md.
TOPIC_THRESHOLD = 0.15
# Takes 18 of 40 injections and 2 of 1,964 ordinary texts for one: see there.
INJECTION_THRESHOLD = 0.3


@dataclass(slots=True)
class Findings:
    """`entities` are in order and apart from each other. `topic` and `injection` are None if nobody
    asked."""

    scores: dict[str, float] = field(default_factory=dict)
    unsafe: set[str] = field(default_factory=set)
    entities: list[Entity] = field(default_factory=list)
    keywords: list[str] = field(default_factory=list)
    topic: float | None = None
    injection: float | None = None

    @property
    def is_injection(self) -> bool:
        return self.injection is not None and self.injection >= INJECTION_THRESHOLD

    @property
    def is_off_topic(self) -> bool:
        return self.topic is not None and self.topic < TOPIC_THRESHOLD

    def block(self, rules: GuardrailParameters) -> bool:
        """Whether the rules forbid the text."""
        pii = bool(self.entities) and rules.pii.behavior == "BLOCK"
        unsafe = rules.safety and bool(self.unsafe)
        return pii or unsafe or bool(self.keywords) or self.is_off_topic or self.is_injection

    def entry(self, name: str, anonymized: Any) -> dict[str, Any]:
        """As the platform tells it; what was judged, with personal data masked, goes by `name`."""
        judged = bool(self.scores)
        entry: dict[str, Any] = {
            "flagged": bool(self.unsafe),
            "categories": self._by_category(self.unsafe.__contains__) if judged else None,
            "category_scores": self._by_category(self._rounded) if judged else None,
            "pii_detection": bool(self.entities),
            name: anonymized if self.entities else None,
        }
        if self.keywords:
            entry["invalid_keywords"] = self.keywords
        if self.is_off_topic:
            entry["topic_score"] = self.topic
        if self.injection is not None:
            entry["prompt_injection"] = self.is_injection
            entry["prompt_injection_score"] = round(self.injection, 4)
        return entry

    def _by_category(self, value: Any) -> dict[str, Any]:
        return {name: value(name) if name in self.scores else None for name in CATEGORIES}

    def _rounded(self, name: str) -> float:
        return round(self.scores[name], 4)


def merged(findings: Iterable[Findings]) -> Findings:
    """What was found in several texts as if they were one; the entities are counted, no more."""
    whole = Findings()
    for each in findings:
        for name, score in each.scores.items():
            whole.scores[name] = max(score, whole.scores.get(name, 0.0))
        whole.unsafe |= each.unsafe
        whole.entities += each.entities
        whole.keywords += [word for word in each.keywords if word not in whole.keywords]
        if each.topic is not None:
            whole.topic = each.topic
        whole.injection = higher(whole.injection, each.injection)
    return whole


def higher(one: float | None, other: float | None) -> float | None:
    """The larger of those that are known."""
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


def masked(text: str, entities: Sequence[Entity]) -> str:
    """The text with each entity replaced by its kind."""
    parts, end = [], 0
    for entity in entities:
        parts += [text[end : entity.start], f"<{entity.kind}>"]
        end = entity.end
    return "".join([*parts, text[end:]])
