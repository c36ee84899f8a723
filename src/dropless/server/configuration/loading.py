"""From a YAML file to a configuration, or to errors that say where and what."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from dropless.errors import SettingsError
from dropless.server.configuration.problems import problems
from dropless.server.configuration.settings import Configuration
from dropless.server.configuration.yaml_positions import PositionedYaml


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
        found = [(document.line(place), text) for place, text in problems(error, Configuration)]
        found.sort(key=lambda problem: problem[0])
        lines = [f"{source}:{line}: {text}" for line, text in found]
        raise SettingsError("\n".join(lines)) from error
    except (TypeError, ValueError) as error:  # a set, a binary: YAML that JSON has no word for
        raise document.error(f"a value is of a kind that is not used here: {error}", 1) from error
