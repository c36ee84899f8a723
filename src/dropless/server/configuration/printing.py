"""A configuration as the YAML that makes it."""

from __future__ import annotations

import json

import yaml

from dropless.server.configuration.settings import Configuration


def to_yaml(configuration: Configuration, *, defaults: bool) -> str:
    """With `defaults` every key there is, else those that are set. `parse` makes an equal
    configuration of it."""
    document = json.loads(configuration.model_dump_json(exclude_unset=not defaults))
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
