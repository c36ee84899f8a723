"""How much memory this process may still take: of the machine, its container and its limits."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_NO_LIMIT = 1 << 60  # cgroup v1 writes "no limit" as a number beyond any machine


def available_memory(root: Path = Path("/")) -> int:
    """Bytes: the least of what the machine has available, what is left of every enclosing
    cgroup's limit (v1 or v2), and what is left of RLIMIT_AS.

    `root` is where /proc/self/cgroup and /sys/fs/cgroup are looked for.
    """
    left = [int(psutil.virtual_memory().available)]
    left += _left_in_cgroups(root)
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft_limit != resource.RLIM_INFINITY:
        left.append(soft_limit - int(psutil.Process().memory_info().vms))
    return max(0, min(left))


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Limit less usage of every cgroup with a limit, from this process' own upwards."""
    try:
        membership = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mount = root / "sys/fs/cgroup"
    for line in membership:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, reclaimable = mount, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top = mount / "memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
            reclaimable = "total_inactive_file"
        else:
            continue
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(top):
                break
            left = _left_in(folder, limit, usage, reclaimable)
            if left is not None:
                yield left


def _left_in(folder: Path, limit_file: str, usage_file: str, reclaimable: str) -> int | None:
    """None without a limit, or where the files do not exist (a container sees its own part)."""
    try:
        limit_text = (folder / limit_file).read_text().strip()
        usage = int((folder / usage_file).read_text())
        statistics = (folder / "memory.stat").read_text().split()
    except OSError:
        return None
    if limit_text == "max" or int(limit_text) >= _NO_LIMIT:
        return None
    values = dict(zip(statistics[::2], statistics[1::2], strict=False))
    return int(limit_text) - usage + int(values.get(reclaimable, 0))
