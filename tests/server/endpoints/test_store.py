"""Endpoints kept over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropless.errors import SettingsError
from dropless.server.configuration.endpoint_settings import EndpointSettings, ServedEntitySettings
from dropless.server.configuration.settings import Configuration
from dropless.server.endpoints.store import EndpointStore


def endpoint(name: str) -> EndpointSettings:
    return EndpointSettings(name=name, served_entities=(ServedEntitySettings(model="m"),))


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "endpoints.json"
    store = EndpointStore(path)
    assert store.endpoints == {}
    store.keep({"a": endpoint("a"), "b": endpoint("b")})
    store.keep({"a": None, "c": endpoint("c"), "d": None})
    assert EndpointStore(path).endpoints == {"b": endpoint("b"), "c": endpoint("c")}
    assert [file.name for file in path.parent.iterdir()] == ["endpoints.json"]


def test_two_servers_with_one_file_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    one, two = EndpointStore(path), EndpointStore(path)
    one.keep({"a": endpoint("a"), "b": endpoint("b")})
    two.keep({"c": endpoint("c")})
    one.keep({"a": None})
    assert EndpointStore(path).endpoints == {"b": endpoint("b"), "c": endpoint("c")}


@pytest.mark.parametrize("content", ["", "[]", '{"endpoints": [{"name": "a"}]}', "\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "endpoints.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingsError, match=str(path)):
        EndpointStore(path)


def test_an_endpoint_has_one_owner(tmp_path: Path) -> None:
    store = EndpointStore(tmp_path / "endpoints.json")
    store.keep({"a": endpoint("a")})
    store.check_apart(Configuration(endpoints=(endpoint("b"),)))
    with pytest.raises(SettingsError, match="'a' was made through the API"):
        store.check_apart(Configuration(endpoints=(endpoint("a"),)))


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    store = EndpointStore(tmp_path / "data" / "endpoints.json")
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(SettingsError, match="a restart will not know of it"):
        store.keep({"a": endpoint("a")})
