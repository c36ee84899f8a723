"""The study's data: one JSON file a measurement, written anew with each point, so that a run that
is cut off keeps what it has and the next one goes on from there."""

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

Document = dict[str, Any]
Point = dict[str, Any]


def machine(device: str, num_gpus: int) -> dict[str, Any]:
    """What a figure depends on beside the study's own settings; `num_gpus` are those used.

    Raises:
        SettingsError: there are fewer GPUs.
    """
    on_gpu = device == "cuda"
    if on_gpu and torch.cuda.device_count() < num_gpus:
        raise SettingsError(
            f"this needs {num_gpus} GPU{'s' * (num_gpus > 1)} and PyTorch sees"
            f" {torch.cuda.device_count()}; --tiny tries the study out on a CPU"
        )
    return {
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "num_gpus": num_gpus if on_gpu else 0,
        "precision": "bfloat16" if on_gpu else "float32",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "dropless": __version__,
    }


class Results:
    """A file of points that were all measured in one way, which `about` tells: `part` and more."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Takes up the points of an earlier run.

        Raises:
            SettingsError: those in the file were measured in another way, or it is damaged.
        """
        self.path = path
        self._document: Document = {"about": dict(about), "complete": False, "points": []}
        if not path.exists():
            return
        self._document = read_file(path)
        found = self._document["about"]
        differing = sorted(
            name for name in found.keys() | about.keys() if found.get(name) != about.get(name)
        )
        if differing:
            text = ", ".join(f"{n} {found.get(n)!r} and not {about.get(n)!r}" for n in differing)
            raise SettingsError(
                f"{path} holds points that were measured with {text}; remove it or give another"
                " --out"
            )

    @property
    def points(self) -> list[Point]:
        found: list[Point] = self._document["points"]
        return found

    @property
    def is_complete(self) -> bool:
        return bool(self._document["complete"])

    @property
    def users(self) -> list[int]:
        """Noted before: what was asked for."""
        return list(self._document.get("users", ()))

    def has(self, **fields: object) -> bool:
        """Whether there is a point with these fields."""
        return any(fields.items() <= point.items() for point in self.points)

    def add(self, point: Point) -> None:
        """Keeps a point on disk at once."""
        self.points.append(point)
        self._write()

    def note(self, name: str, value: object) -> None:
        """Keeps beside the points what was found once."""
        self._document[name] = value
        self._write()

    def complete(self) -> None:
        """Nothing is left to measure."""
        self.note("complete", True)

    def _write(self) -> None:
        self._document["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self._document, indent=1) + "\n")
        part.replace(self.path)


def read_file(path: Path) -> Document:
    """
    Raises:
        SettingsError: it is not of the study.
    """
    try:
        document: Document = json.loads(path.read_text())
        if isinstance(document["about"]["part"], str) and document["points"] is not None:
            return document
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is no data of `dropless study`; remove it") from error
    raise SettingsError(f"{path} is no data of `dropless study`; remove it")


def read_all(folder: Path, part: str) -> list[Document]:
    """All of a part that have points, in the order of their names.

    Raises:
        SettingsError: a file there is not of the study.
    """
    documents = [read_file(path) for path in sorted(folder.glob("*.json"))]
    return [found for found in documents if found["about"]["part"] == part and found["points"]]


def origin(document: Document) -> str:
    """Machine, precision, versions and day, for captions."""
    about = document["about"]
    where = f"{about['num_gpus']} x {about['gpu']}" if about["gpu"] else "CPU, tiny shapes"
    versions = f"PyTorch {about['torch']}"
    if about["triton"]:
        versions += f", Triton {about['triton']}"
    return f"{where}, {about['precision']}, {versions}, {document['date'][:10]}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
