"""What is wrong with a configuration, in sentences that name the key and the nearest known one."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dropless.server.configuration.section import Section
from dropless.server.errors import complaint

Place = tuple[str | int, ...]


def problems(error: ValidationError, root: type[Section]) -> list[tuple[Place, str]]:
    """Each with its place in `root`. Left out are those of a sequence or section that only tell of
    a problem within it."""
    each = error.errors(include_url=False)
    places = [problem["loc"] for problem in each]
    return [
        (problem["loc"], _sentence(problem, root))
        for problem in each
        if not any(_is_within(place, problem["loc"]) for place in places)
    ]


def _is_within(place: Place, outer: Place) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _sentence(problem: ErrorDetails, root: type[Section]) -> str:
    place, sentence = complaint(problem)
    if problem["type"] == "missing":
        return f"{place} is missing"
    if problem["type"] == "model_type":
        return f"{place or 'the configuration'} must be a mapping of keys to values"
    if problem["type"] != "extra_forbidden":
        return sentence
    *around, key = problem["loc"]
    known = _known_keys(root, around)
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    return f"{place} is not known; {hint}"


def _known_keys(section: type[BaseModel], place: list[int | str]) -> list[str]:
    """The keys of the section at this place."""
    for step in place:
        if isinstance(step, str) and step in section.model_fields:
            section = _section_in(section.model_fields[step].annotation) or section
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section of a type like `tuple[Section, ...]` or `Section | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for a in get_args(annotation) if (found := _section_in(a))), None)
