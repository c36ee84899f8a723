"""The texts inside a JSON value: to be judged as one, and masked where they stand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from dropless.encoder.messages import Entity
from dropless.server.guardrails.findings import masked


class JsonText:
    """`text` has the strings, numbers and keys of a value, a line for each, values behind their
    keys: what a number is, often only its key tells."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._leaves: list[tuple[int, int]] = []  # where each begins and ends in the text
        self._parts: list[str] = []
        self._size = 0
        self._add(value)
        self.text = "".join(self._parts)

    def masked(self, entities: Sequence[Entity]) -> Any:
        """The value with these entities, which are in order, replaced by their kinds. A number that
        has one becomes a string."""
        return _masked(self._value, self._inside(entities))

    def _add(self, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                self._add_leaf(key)
                self._write(":\n" if isinstance(item, dict | list) else ": ")
                self._add(item)
        elif isinstance(value, list):
            for item in value:
                self._add(item)
        else:
            if _is_leaf(value):
                self._add_leaf(_leaf_text(value))
            self._write("\n")

    def _add_leaf(self, text: str) -> None:
        self._leaves.append((self._size, self._size + len(text)))
        self._write(text)

    def _write(self, text: str) -> None:
        self._parts.append(text)
        self._size += len(text)

    def _inside(self, entities: Sequence[Entity]) -> Iterator[list[Entity]]:
        """For each leaf the parts of entities in it, by its own characters."""
        first = 0
        for start, end in self._leaves:
            while first < len(entities) and entities[first].end <= start:
                first += 1
            inside = []
            for entity in entities[first:]:
                if entity.start >= end:
                    break
                begin = max(0, entity.start - start)
                inside.append(Entity(begin, min(entity.end, end) - start, entity.kind))
            yield inside


def arguments_text(arguments: str) -> JsonText:
    """Of a call's arguments. What is no whole JSON, or says a key twice, is one text."""
    try:
        return JsonText(json.loads(arguments, object_pairs_hook=_unique))
    except (ValueError, RecursionError):
        return JsonText(arguments)


def masked_arguments(arguments: str, text: JsonText, entities: Sequence[Entity]) -> str:
    """`arguments` with entities of their text masked; as they were, if there are none."""
    if not entities:
        return arguments
    value = text.masked(entities)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _masked(value: Any, inside: Iterator[list[Entity]]) -> Any:
    if isinstance(value, dict):
        return {masked(key, next(inside)): _masked(item, inside) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, inside) for item in value]
    if not _is_leaf(value):
        return value
    entities = next(inside)
    return masked(_leaf_text(value), entities) if entities else value


def _is_leaf(value: Any) -> bool:
    return value is not None and not isinstance(value, bool)


def _leaf_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice")
    return value
