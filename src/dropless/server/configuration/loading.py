"""From a YAML file to a configuration, or to errors that say where and what."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dropless.errors import SettingsError
from dropless.server.configuration.settings import Configuration
from dropless.server.configuration.yaml_positions import PositionedYaml
from dropless.server.errors import complaint


def load(path: Path) -> Configuration:
    """Raises SettingsError: the file cannot be read, or as `parse`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the configuration {path}: {error}") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Configuration:
    """The configuration that this YAML describes.

    Raises:
        SettingsError: it is none; one line for each problem, with `source`, its line and its key.
    """
    document = PositionedYaml(text, source)
    try:
        return Configuration.model_validate_json(json.dumps(document.value))
    except ValidationError as error:
        problems = [
            f"{source}:{document.line(problem['loc'])}: {_sentence(problem)}"
            for problem in _innermost(error.errors(include_url=False))
        ]
        raise SettingsError("\n".join(problems)) from error
    except (TypeError, ValueError) as error:  # a set, a binary: YAML that JSON has no word for
        raise document.error(f"a value is of a kind that is not used here: {error}", 1) from error


def _innermost(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without those of a sequence that only tell of a problem within it."""
    places = [problem["loc"] for problem in problems]
    return [
        problem
        for problem in problems
        if not any(
            len(place) > len(problem["loc"]) and place[: len(problem["loc"])] == problem["loc"]
            for place in places
        )
    ]


def _sentence(problem: ErrorDetails) -> str:
    place, sentence = complaint(problem)
    if problem["type"] == "missing":
        return f"{place} is missing"
    if problem["type"] == "model_type":
        return f"{place or 'the configuration'} must be a mapping of keys to values"
    if problem["type"] != "extra_forbidden":
        return sentence
    *around, key = problem["loc"]
    known = _known_keys(Configuration, around)
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    return f"{place} is not known; {hint}"


def _known_keys(section: type[BaseModel], path: list[int | str]) -> list[str]:
    """The keys of the section at this path."""
    for step in path:
        if isinstance(step, str) and step in section.model_fields:
            section = _section_in(section.model_fields[step].annotation) or section
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section of a type like `tuple[Section, ...]` or `Section | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for a in get_args(annotation) if (found := _section_in(a))), None)
