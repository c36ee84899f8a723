"""Kernels that are compiled, or only asked for, and not launched."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from dropless.ops.fp8 import quantize_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are compiled during the test."""
    names: list[str] = []
    runtime = pytest.importorskip("triton").knobs.runtime
    monkeypatch.setattr(runtime, "jit_post_compile_hook", lambda fn, **_: names.append(fn.name))
    return names


def rows(size: int) -> Any:
    return torch.randn(3, size, device="cuda", dtype=torch.bfloat16)


def test_a_kernel_is_compiled_once_and_not_launched(compiled: list[str]) -> None:
    from dropless.ops.triton.dry_run import compiling

    x = rows(320)
    with ThreadPoolExecutor(2) as pool, compiling(pool) as compilations:
        values = [quantize_tokens(x)[0] for _ in range(4)]
        assert len(compilations) == 1
    assert all((value.float() == 0).all() for value in values)
    assert [name.rpartition(".")[2] for name in compiled] == ["_quantize_kernel"]
    launched, scales = quantize_tokens(x)
    assert len(compiled) == 1
    torch.testing.assert_close(launched.float() * scales[:, None], x.float(), rtol=0.07, atol=1e-3)


def test_a_dry_run_compiles_nothing(compiled: list[str]) -> None:
    from dropless.ops.triton.dry_run import dry_run

    with dry_run():
        values, scales = quantize_tokens(rows(336))
    assert (values.float() == 0).all()
    assert (scales == 0).all()
    assert compiled == []


def test_launches_are_back_after_an_error() -> None:
    from dropless.ops.triton.dry_run import dry_run

    with pytest.raises(ZeroDivisionError), dry_run():
        1 / 0  # noqa: B018
    assert quantize_tokens(rows(352))[1].all()
