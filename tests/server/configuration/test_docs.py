"""What docs/endpoints.md says of the configuration."""

from __future__ import annotations

import re
from pathlib import Path

from dropless.server.configuration.endpoint_settings import EndpointSettings, ServedEntitySettings
from dropless.server.configuration.loading import parse
from dropless.server.configuration.settings import Configuration, ServerSettings
from dropless.server.limits import HttpLimits

PAGE = (Path(__file__).parents[3] / "docs" / "endpoints.md").read_text()


def test_the_example_loads() -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    configuration = parse(example, "example")
    assistant, code = configuration.endpoints
    assert assistant.shares() == [90, 10]
    shared, alone = assistant.served_entities[1], code.served_entities[0]
    assert (shared.model, shared.engine) == (alone.model, alone.engine), "the page says: once"


def test_every_key_is_named() -> None:
    sections = (Configuration, ServerSettings, HttpLimits, EndpointSettings, ServedEntitySettings)
    for section in sections:
        for key in section.model_fields:
            assert re.search(rf"`[^`\n]*\b{key}\b[^`\n]*`", PAGE), f"{section.__name__}.{key}"
