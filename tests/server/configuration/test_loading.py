"""YAML to a configuration, and what is said of a file that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dropless.engine.config import EngineConfig
from dropless.errors import SettingsError
from dropless.server.configuration.loading import load, parse
from dropless.server.configuration.printing import to_yaml
from dropless.server.configuration.settings import Configuration

TWO_MODELS = """\
server:
  port: 9000
  limits: {shutdown_grace_s: 30}
endpoints:
  - name: small
    served_entities:
      - model: smollm2-135m-instruct
        engine:
          threads: 2
          tokenizer_path: /models/tokenizer.json
      - name: coder
        model: qwen2.5-coder-0.5b-instruct
    traffic_config:
      routes:
        - {served_entity_name: smollm2-135m-instruct, traffic_percentage: 90}
        - {served_entity_name: coder, traffic_percentage: 10}
    fallback_config: {enabled: false}
"""


def test_every_part_arrives() -> None:
    configuration = parse(TWO_MODELS, "two.yaml")
    assert configuration.server.port == 9000
    assert configuration.server.limits.shutdown_grace_s == 30
    [endpoint] = configuration.endpoints
    assert [entity.name for entity in endpoint.served_entities] == [
        "smollm2-135m-instruct",
        "coder",
    ]
    assert endpoint.shares() == [90, 10]
    assert not endpoint.fallback_config.enabled
    engine = endpoint.served_entities[0].engine.config(Path("/m"), "m")
    assert engine == EngineConfig(
        model_path=Path("/m"),
        model_id="m",
        threads=2,
        tokenizer_path=Path("/models/tokenizer.json"),
    )


def test_an_empty_file_is_all_defaults() -> None:
    assert parse("", "empty.yaml") == Configuration()
    assert parse("# nothing\n", "empty.yaml") == Configuration()


@pytest.mark.parametrize("defaults", [False, True])
def test_what_is_printed_loads_as_the_same(defaults: bool) -> None:
    configuration = parse(TWO_MODELS, "two.yaml")
    printed = to_yaml(configuration, defaults=defaults)
    assert parse(printed, "printed.yaml") == configuration
    assert ("shutdown_grace_s" in printed, "stalled_client_s" in printed) == (True, defaults)


def test_without_defaults_only_what_is_set_is_printed() -> None:
    expected = yaml.safe_load(TWO_MODELS)
    assert yaml.safe_load(to_yaml(parse(TWO_MODELS, "two.yaml"), defaults=False)) == expected


def changed(old: str, new: str) -> str:
    assert old in TWO_MODELS
    return TWO_MODELS.replace(old, new)


WRONG: dict[str, tuple[str, str]] = {
    "no YAML": ("endpoints: [", "f.yaml:1: expected the node content"),
    "a list": ("- 1", "f.yaml:1: the configuration must be a mapping"),
    "misspelt section": (
        changed("server:", "sever:"),
        "f.yaml:1: sever is not known; did you mean 'server'?",
    ),
    "misspelt key deep inside": (
        changed("threads", "thread"),
        "f.yaml:9: endpoints[0].served_entities[0].engine.thread is not known; did you mean "
        "'threads'?",
    ),
    "a key of nowhere": (
        changed("port", "zzz"),
        "f.yaml:2: server.zzz is not known; known here: host, port",
    ),
    "wrong type": (
        changed("9000", '"9000"'),
        'f.yaml:2: server.port is "9000"; it must be a valid integer',
    ),
    "out of range": (
        changed("9000", "90000"),
        "f.yaml:2: server.port is 90000; it must be less than or equal to 65535",
    ),
    "not a number": (
        changed("30}", ".nan}"),
        "f.yaml:3: server.limits.shutdown_grace_s is nan",
    ),
    "a setting that the engine refuses": (
        changed("threads: 2", "threads: 0"),
        "f.yaml:8: endpoints[0].served_entities[0].engine: threads is 0; it must be at least 1",
    ),
    "missing": (
        "endpoints:\n  - served_entities: [{name: a}]",
        "f.yaml:2: endpoints[0].name is missing\n"
        "f.yaml:2: endpoints[0].served_entities[0].model is missing",
    ),
    "no mapping": (
        changed("{shutdown_grace_s: 30}", "30"),
        "f.yaml:3: server.limits must be a map",
    ),
    "nested without end": ("a: " + "[" * 3000, "f.yaml:1: "),
    "shares beside 100": (
        changed("90", "91"),
        "f.yaml:13: endpoints[0].traffic_config: the routes' traffic_percentage sum to 101",
    ),
    "a route to nowhere": (
        changed("served_entity_name: coder", "served_entity_name: decoder"),
        "f.yaml:5: endpoints[0]: traffic_config must route to each served entity at most once, not "
        "to 'decoder'",
    ),
    "two entities of one name": (
        changed("name: coder", "name: smollm2-135m-instruct"),
        "f.yaml:5: endpoints[0]: two served entities are called 'smollm2-135m-instruct'",
    ),
    "two entities and no traffic": (
        TWO_MODELS[: TWO_MODELS.index("    traffic_config")],
        "f.yaml:5: endpoints[0]: there are 2 served entities; traffic_config must say",
    ),
    "two endpoints of one name": (
        TWO_MODELS + "  - {name: small, served_entities: [{model: x}]}\n",
        "two endpoints are called 'small'",
    ),
    "a key given twice": (TWO_MODELS + "server: {}\n", "f.yaml:18: 'server' is given twice"),
    "a name with a line break": (changed("name: small", 'name: "a\\nb"'), "f.yaml:5: endpoints[0]"),
    "an anchor within itself": ("data: &a [*a]", "f.yaml:1: a value contains itself"),
    "a program": ("data: !!python/name:os.system x", "f.yaml:1: could not determine"),
    "a key that is no name": ("? [a]\n: b", "f.yaml:1: a key must be a plain name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_with_its_line(name: str) -> None:
    text, says = WRONG[name]
    with pytest.raises(SettingsError) as caught:
        parse(text, "f.yaml")
    assert says in str(caught.value)


def test_every_problem_has_a_line_of_its_own() -> None:
    text = changed("9000", '"9000"').replace("threads", "thread")
    with pytest.raises(SettingsError) as caught:
        parse(text, "f.yaml")
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "f.yaml:2:",
        "f.yaml:9:",
    ]


def test_a_file_that_is_not_there_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read the configuration .*nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot read the configuration"):
        load(tmp_path / "binary.yaml")


PLAIN: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def problems(text: str) -> list[str]:
    """What is said of it, by line; nothing if it is right."""
    try:
        assert isinstance(parse(text, "f.yaml"), Configuration)
    except SettingsError as error:
        return str(error).splitlines()
    return []


@given(st.sampled_from(list(Configuration.model_fields)), PLAIN)
def test_any_section_is_taken_or_refused_with_its_place(section: str, value: Any) -> None:
    said = problems(yaml.safe_dump({section: value}))
    assert all(line.startswith("f.yaml:") for line in said)


@given(st.text())
def test_any_text_is_taken_or_refused(text: str) -> None:
    assert all(line.startswith("f.yaml:") for line in problems(text))
