"""Huge pages: content stays what it was."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from dropless.engine.huge_pages import use_huge_pages

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.system() != "Linux", reason="needs Linux")
def test_content_survives_and_pages_are_huge() -> None:
    tensor = torch.arange(8_000_000, dtype=torch.float32)
    expected = tensor.sum(dtype=torch.float64).item()
    moved = use_huge_pages()
    assert tensor.sum(dtype=torch.float64).item() == expected
    if not THP.exists() or "[never]" in THP.read_text():
        pytest.skip("this system offers no huge pages")
    if moved == 0:
        pytest.skip("this kernel cannot collapse pages (Linux 6.1 can)")
    kib = [
        line.split()[1]
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
        if line.startswith("AnonHugePages:")
    ]
    assert int(kib[0]) * 1024 >= 0.9 * tensor.nbytes
