"""openai-moderation's prompts in two halves: one to train on, one to measure on."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

# The categories that its labels can support, and which labels mean each of them.
CATEGORIES = {
    "violence-and-hate": ("H", "H2", "V", "V2", "HR"),
    "sexual-content": ("S", "S3"),
    "suicide-and-self-harm": ("SH",),
}
_LABELS = tuple(label for labels in CATEGORIES.values() for label in labels)


@dataclass(frozen=True, slots=True)
class Prompt:
    """`labels` of the data set's letters, 0 or 1; where nobody has judged, a letter is absent."""

    text: str
    labels: dict[str, int]

    @property
    def is_unsafe(self) -> bool:
        """Whether any label says so."""
        return 1 in self.labels.values()

    def is_in(self, category: str) -> bool | None:
        """None where nobody has judged it."""
        judged = [self.labels[name] for name in CATEGORIES[category] if name in self.labels]
        return (1 in judged) if judged else None


def read_halves(data: Path) -> tuple[list[Prompt], list[Prompt]]:
    """The half to train on and the half to measure on. A prompt's half follows from its text
    alone, so that no text is in both."""
    halves: tuple[list[Prompt], list[Prompt]] = [], []
    path = data / "openai-moderation" / "samples-1680.jsonl.gz"
    for line in gzip.decompress(path.read_bytes()).splitlines():
        row = json.loads(line)
        labels = {name: row[name] for name in _LABELS if row.get(name) is not None}
        half = hashlib.sha256(row["prompt"].encode()).digest()[0] & 1
        halves[half].append(Prompt(row["prompt"], labels))
    return halves
