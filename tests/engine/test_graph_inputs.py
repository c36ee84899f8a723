from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.engine.device_rows import DeviceRows
from dropless.engine.graph_inputs import GraphInputs, GraphSize
from dropless.engine.row_table import RowTable
from dropless.engine.step import StepInput
from dropless.engine.step_graphs import MOST_TOKENS, batch_buckets, token_buckets

BLOCK, MAX_LEN, MAX_ROWS = 8, 64, 6
MAX_BLOCKS = MAX_LEN // BLOCK
SPARE_BLOCK = 500
CPU = torch.device("cpu")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_padded_step_is_the_step_and_padding_touches_the_spare_block_only(
    data: st.DataObject,
) -> None:
    """Several steps through one graph's inputs: nothing may be left of the step before."""
    only_decodes = data.draw(st.booleans())
    num_tokens = data.draw(st.integers(MAX_ROWS, 70))
    if only_decodes:
        size = GraphSize(num_tokens, num_tokens, 0)
    else:
        size = GraphSize(num_tokens, min(num_tokens, MAX_ROWS) + 1, num_tokens // 2)
    device_rows = DeviceRows(MAX_ROWS, MAX_BLOCKS, CPU)
    device_rows.block_tables[MAX_ROWS] = SPARE_BLOCK
    device_rows.next_tokens[:] = torch.arange(MAX_ROWS + 1) + 1000
    inputs = GraphInputs(size, device_rows, SPARE_BLOCK, BLOCK)
    for _ in range(data.draw(st.integers(1, 3))):
        check_one_step(data, inputs, size, device_rows, only_decodes)


def check_one_step(
    data: st.DataObject,
    inputs: GraphInputs,
    size: GraphSize,
    device_rows: DeviceRows,
    only_decodes: bool,
) -> None:
    table = RowTable(MAX_ROWS, MAX_LEN, BLOCK)
    count = data.draw(st.integers(1, MAX_ROWS))
    rows = data.draw(st.permutations(range(MAX_ROWS)))[:count]
    lens = data.draw(st.lists(st.integers(1, MAX_LEN), min_size=count, max_size=count))
    room, chunks = size.num_tokens - count, []
    for length in lens:
        more = 0 if only_decodes else data.draw(st.integers(0, min(room, length - 1)))
        room -= more
        chunks.append(1 + more)
    order = sorted(range(count), key=lambda i: chunks[i] != 1)
    rows, lens, chunks = ([each[i] for i in order] for each in (rows, lens, chunks))
    free = iter(data.draw(st.permutations(range(MAX_ROWS * MAX_BLOCKS))))
    blocks = [[next(free) for _ in range(-(-length // BLOCK))] for length in lens]
    for row, length in zip(rows, lens, strict=True):
        table.start(row, [row * 100 + place for place in range(length)])
    computed = [length - chunk for length, chunk in zip(lens, chunks, strict=True)]
    step = StepInput(rows, computed, chunks, blocks, [True] * count)
    inputs.put(table.gather(step, {}))
    batch = inputs.batch([])
    paged = batch.paged
    starts = paged.query_start.tolist()
    assert starts[0] == 0
    assert starts[-1] == size.num_tokens == len(batch.token_ids)
    assert paged.num_decodes == size.num_seqs == len(paged.seq_lens)
    longest = int(paged.query_start.diff().max())
    assert longest <= 1 or size.num_chunks >= int((paged.query_start.diff() > 1).sum())
    for i, (row, length, chunk) in enumerate(zip(rows, lens, chunks, strict=True)):
        own = slice(starts[i], starts[i + 1])
        places = list(range(length - chunk, length))
        given_ids = [row * 100 + place for place in places]
        assert starts[i + 1] - starts[i] == chunk
        assert paged.seq_lens[i] == length
        assert batch.token_ids[own].tolist() == ([1000 + row] if chunk == 1 else given_ids)
        assert batch.positions[own].tolist() == places
        assert paged.slot_mapping[own].tolist() == [
            blocks[i][place // BLOCK] * BLOCK + place % BLOCK for place in places
        ]
        assert paged.block_tables[i, : len(blocks[i])].tolist() == blocks[i]
    assert (paged.block_tables[count:] == SPARE_BLOCK).all()
    assert (paged.slot_mapping[starts[count] :] // BLOCK == SPARE_BLOCK).all()
    assert paged.seq_lens[count:].tolist() == np.diff(starts[count:]).tolist()
    assert (device_rows.block_tables[MAX_ROWS] == SPARE_BLOCK).all()


def test_every_step_has_a_graph_that_is_not_much_larger() -> None:
    for max_rows in (1, 5, 256, 1000):
        sizes = batch_buckets(max_rows)
        assert sizes[0] == 1
        assert sizes[-1] == max_rows
        assert all(2 * a >= b for a, b in pairwise(sizes))
    for budget in (1, 48, 1000, 8192):
        sizes = token_buckets(budget)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == min(budget, MOST_TOKENS)
        above_256 = [size for size in sizes if size >= 256]
        assert all(5 * (b - a) <= b for a, b in pairwise(above_256))
