from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dropless.engine.machine_memory import available_memory

MIB = 2**20


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_cgroups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    available = psutil.virtual_memory().available
    assert available_memory(tmp_path) == pytest.approx(available, rel=0.2)


def test_version_2_takes_the_tightest_enclosing_group(tmp_path: Path) -> None:
    write(tmp_path / "proc/self", cgroup="0::/outer/inner\n")
    mount = tmp_path / "sys/fs/cgroup"
    stat = f"anon 5\ninactive_file {3 * MIB}\n"
    write(
        mount / "outer/inner",
        memory__max="max\n",
        memory__current=str(MIB),
        memory__stat=stat,
    )
    write(
        mount / "outer",
        memory__max=str(20 * MIB),
        memory__current=str(10 * MIB),
        memory__stat=stat,
    )
    assert available_memory(tmp_path) == 13 * MIB


def test_version_1_in_a_container_that_sees_only_its_own_part(tmp_path: Path) -> None:
    write(tmp_path / "proc/self", cgroup="9:cpu:/x\n4:cpuacct,memory:/docker/abc\n0::/\n")
    write(
        tmp_path / "sys/fs/cgroup/memory",
        memory__limit_in_bytes=str(8 * MIB),
        memory__usage_in_bytes=str(5 * MIB),
        memory__stat="inactive_file 77\ntotal_inactive_file 1024\n",
    )
    assert available_memory(tmp_path) == 3 * MIB + 1024


def test_version_1_without_a_limit(tmp_path: Path) -> None:
    write(tmp_path / "proc/self", cgroup="4:memory:/\n")
    write(
        tmp_path / "sys/fs/cgroup/memory",
        memory__limit_in_bytes="9223372036854771712",
        memory__usage_in_bytes="1",
        memory__stat="",
    )
    assert available_memory(tmp_path) > 64 * MIB


def test_address_space_limit(tmp_path: Path) -> None:
    limit = 600 * MIB
    code = (
        "import resource, pathlib, psutil\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
        "from dropless.engine.machine_memory import available_memory\n"
        f"print(available_memory(pathlib.Path({str(tmp_path)!r})))\n"
        "print(psutil.Process().memory_info().vms)\n"
    )
    lines = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert int(lines[0]) == pytest.approx(limit - int(lines[1]), abs=16 * MIB)
