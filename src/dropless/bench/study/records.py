"""The study's data: one file a measurement, never overwritten, with where and when it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dropless import __version__
from dropless.errors import SettingsError

Record = dict[str, Any]


def machine(device: str, num_gpus: int) -> dict[str, Any]:
    """What a figure depends on beside the code's own settings; `num_gpus` are those used."""
    on_gpu = device == "cuda"
    return {
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "num_gpus": num_gpus if on_gpu else 0,
        "precision": "bfloat16" if on_gpu else "float32",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "dropless": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def append(folder: Path, part: str, case: str, record: Mapping[str, Any]) -> Path:
    """Writes `record`, which has its `machine`, into a file of its own: its path."""
    stamp = "".join(c for c in record["machine"]["date"][:19] if c.isalnum())
    path = folder / f"{part}-{case}-{stamp}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"part": part, "case": case, **record}, indent=1) + "\n")
    return path


def read(folder: Path, part: str) -> list[Record]:
    """All of a part, the oldest first.

    Raises:
        SettingsError: a file there is not of the study.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            if record["part"] == part:
                records.append((record["machine"]["date"], record))
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{path} is no data of `dropless study`; remove it") from error
    return [record for _, record in sorted(records, key=lambda dated: dated[0])]


def origin(record: Record) -> str:
    """Machine, precision, versions and day of a record, for captions."""
    found = record["machine"]
    where = f"{found['num_gpus']} x {found['gpu']}" if found["gpu"] else "CPU, tiny shapes"
    versions = f"PyTorch {found['torch']}"
    if found["triton"]:
        versions += f", Triton {found['triton']}"
    return f"{where}, {found['precision']}, {versions}, {found['date'][:10]}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
