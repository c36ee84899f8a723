"""The folder of fetched models, and when a file in it may be trusted."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from dropless.checkpoints.catalogue import CatalogueEntry, SmallFile
from dropless.checkpoints.progress import Progress, silent
from dropless.errors import ChecksumError

_READ_BYTES = 1 << 20


def cache_root() -> Path:
    """Ours of the user's cache folder (XDG_CACHE_HOME where it is set)."""
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if xdg:
        base = Path(xdg)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "dropless"


def default_cache_dir() -> Path:
    """Where fetched models are kept."""
    return cache_root() / "models"


def model_path(entry: CatalogueEntry, cache_dir: Path) -> Path:
    """Where the entry's file is, or will be once it is fetched."""
    return cache_dir / entry.name / entry.file


def cached_model(
    entry: CatalogueEntry,
    cache_dir: Path | None = None,
    progress: Progress = silent,
    *,
    verify: bool = False,
) -> Path | None:
    """The entry's file if it is in the cache and sound, else None.

    A file is recognized by the stamp left when its sha256 was last computed: same size, same
    modification time. Without one that fits, or with `verify`, the sha256 is computed again; a
    file with another one is removed and counts as absent. Small files beside it are always
    computed again.
    """
    path = model_path(entry, cache_dir or default_cache_dir())
    if not path.is_file() or not all(_is_sound(path.parent, small) for small in entry.beside):
        return None
    if not verify and _read_stamp(path) == _stamp(entry, path):
        return path
    try:
        verify_file(entry, path, progress)
    except ChecksumError:
        return None
    write_stamp(entry, path)
    return path


def verify_file(entry: CatalogueEntry, path: Path, progress: Progress) -> None:
    """Compare size and sha256 with the catalogue's; a file that differs is removed.

    Raises:
        ChecksumError: it differs.
    """
    size, digest = path.stat().st_size, "not computed"
    if size == entry.size_bytes:
        digest = _sha256(path, f"verifying {entry.name}", progress)
    if digest == entry.sha256:
        return
    path.unlink()
    raise ChecksumError(
        f"{path} was not what the catalogue promises for {entry.name} and has been removed:"
        f" {size} bytes, sha256 {digest}; expected {entry.size_bytes} bytes, {entry.sha256}."
        " Pull again; if it happens twice, the package has changed and must not be used"
    )


def _is_sound(folder: Path, small: SmallFile) -> bool:
    try:
        content = (folder / small.file).read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content).hexdigest() == small.sha256


def write_stamp(entry: CatalogueEntry, path: Path) -> None:
    """Note that the file was verified as it is now."""
    stamp = _stamp_path(path)
    temporary = stamp.with_suffix(".tmp")
    temporary.write_text(json.dumps(_stamp(entry, path)), encoding="utf-8")
    temporary.replace(stamp)


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".verified.json")


def _stamp(entry: CatalogueEntry, path: Path) -> dict[str, str | int]:
    status = path.stat()
    return {"sha256": entry.sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read_stamp(path: Path) -> object:
    try:
        return json.loads(_stamp_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _sha256(path: Path, stage: str, progress: Progress) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(stage, done, total)
    return digest.hexdigest()
