"""The plan of a slice, against what PyTorch's own narrow gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dropless.checkpoints.slices import plan_slab, split_slab
from dropless.errors import CheckpointError


@st.composite
def slices_of_views(
    draw: st.DrawFn,
) -> tuple[tuple[int, ...], tuple[int, ...], int | None, int, int]:
    """A stored shape, a view of it, and a slice of the view."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    stored = shape
    if len(shape) > 2 and draw(st.booleans()):
        stored = (shape[0] * shape[1], *shape[2:])
    dim = draw(st.none() | st.integers(0, len(shape) - 1))
    size = shape[dim if dim is not None else 0]
    start = draw(st.integers(0, size))
    return stored, shape, dim, start, draw(st.integers(0, size - start))


@given(slices_of_views())
def test_rows_and_columns_are_the_slice(case) -> None:
    stored, shape, dim, start, length = case
    full = torch.arange(torch.Size(shape).numel())
    slab = plan_slab("t", stored, shape, dim, start, length)
    matrix = full.view(1, -1) if len(shape) == 1 else full.view(-1, shape[-1])
    pieces = [matrix[a:b, slab.columns[0] : slab.columns[1]] for a, b in slab.row_ranges]
    expected = full.view(shape) if dim is None else full.view(shape).narrow(dim, start, length)
    assert torch.equal(torch.cat(pieces).reshape(slab.shape), expected)
    assert (slab.num_rows, slab.num_columns) == tuple(torch.cat(pieces).shape)


@given(slices_of_views(), st.integers(1, 40))
def test_parts_one_after_the_other_are_the_slice(case, most) -> None:
    stored, shape, dim, start, length = case
    full = torch.arange(torch.Size(shape).numel())
    matrix = full.view(1, -1) if len(shape) == 1 else full.view(-1, shape[-1])

    def elements(slab):
        rows = [matrix[a:b, slab.columns[0] : slab.columns[1]] for a, b in slab.row_ranges]
        return torch.cat(rows).flatten()

    slab = plan_slab("t", stored, shape, dim, start, length)
    found = full.new_empty(0)
    for part, before in split_slab(slab, most):
        assert before == len(found)
        assert 0 < part.size == part.shape[0] * part.shape[1] <= most
        found = torch.cat([found, elements(part)])
    assert torch.equal(found, elements(slab))


@pytest.mark.parametrize("shape", [(8, 4), (3, 8), (2, 3, 3), (24,), (4, 2, 4, 1)])
def test_another_shape_is_refused(shape) -> None:
    with pytest.raises(CheckpointError, match=r"has shape \[8, 3\]"):
        plan_slab("t", (8, 3), shape, None, 0, None)


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (7, 2), (9, None), (0, 9)])
def test_a_slice_outside_is_refused(start, length) -> None:
    with pytest.raises(CheckpointError, match="leaves tensor t"):
        plan_slab("t", (8, 3), (8, 3), 0, start, length)
