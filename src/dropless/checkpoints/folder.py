"""The JSON files of a Hugging Face model folder: config.json and generation_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dropless.errors import CheckpointError, ConfigError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: not readable, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not valid JSON ({error}); the file is damaged or incomplete: fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not an object of settings")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """The model configuration of a folder.

    Raises:
        CheckpointError: no config.json.
        ConfigError: config.json is damaged or does not name its model_type.
    """
    path = folder / "config.json"
    if not path.is_file():
        hint = ""
        gguf_files = sorted(folder.glob("*.gguf"))
        if gguf_files:
            hint = f"; to use the GGUF file in it, name the file: {gguf_files[0]}"
        raise CheckpointError(f"{folder} has no config.json, so it is no model folder{hint}")
    config = read_json_object(path)
    if not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{path} lacks the field model_type, which names the model's family")
    return config


def read_eos_token_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end generation: generation_config.json's if it names any, else config.json's;
    empty when neither does (the tokenizer then decides).

    Raises:
        ConfigError: eos_token_id is neither an integer nor a list of integers.
    """
    path = folder / "generation_config.json"
    generation = read_json_object(path) if path.is_file() else {}
    for source, content in ((path, generation), (folder / "config.json", config)):
        value = content.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise ConfigError(f"eos_token_id in {source} is {value!r}; it must hold token ids")
        return tuple(ids)
    return ()
