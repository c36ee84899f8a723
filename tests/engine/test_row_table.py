from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.engine.row_table import RowTable
from dropless.engine.step import StepInput

BLOCK, MAX_LEN = 8, 64
MAX_BLOCKS = MAX_LEN // BLOCK


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_step_is_gathered_token_by_token(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    rows = data.draw(st.permutations(range(count)))
    table = RowTable(count, MAX_LEN, BLOCK)
    tokens, blocks, computed, chunks = [], [], [], []
    free = iter(data.draw(st.permutations(range(100))))
    for row in rows:
        length = data.draw(st.integers(1, MAX_LEN))
        tokens.append(data.draw(st.lists(st.integers(0, 9), min_size=length, max_size=length)))
        computed.append(data.draw(st.integers(0, length - 1)))
        chunks.append(data.draw(st.integers(1, length - computed[-1])))
        blocks.append([next(free) for _ in range(-(-(computed[-1] + chunks[-1]) // BLOCK))])
        table.start(row, tokens[-1])
    first = sorted(range(count), key=lambda i: chunks[i] != 1)
    rows, tokens, blocks, computed, chunks = (
        [each[i] for i in first] for each in (rows, tokens, blocks, computed, chunks)
    )
    num_decodes = sum(chunk == 1 for chunk in chunks)
    known = {row: tokens[i][computed[i]] for i, row in enumerate(rows[:num_decodes])}
    for i in range(num_decodes):  # the last token of some was sampled: only the device has it
        if computed[i] == len(tokens[i]) - 1 and data.draw(st.booleans()):
            table.start(rows[i], tokens[i][:-1])
            del known[rows[i]]
    replaced = {row: 77 for row in rows if row not in known and data.draw(st.booleans())}
    sample = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    arrays = table.gather(StepInput(rows, computed, chunks, blocks, sample), replaced)
    flat = [
        (i, place) for i in range(count) for place in range(computed[i], computed[i] + chunks[i])
    ]
    assert arrays.rows.tolist() == rows
    assert arrays.num_decodes == num_decodes
    assert arrays.token_ids.tolist() == [tokens[i][place] for i, place in flat[num_decodes:]]
    given_ids = zip(arrays.given_rows.tolist(), arrays.given_ids.tolist(), strict=True)
    assert list(given_ids) == [*known.items(), *replaced.items()]
    assert arrays.positions.tolist() == [place for _, place in flat]
    assert arrays.slot_mapping.tolist() == [
        blocks[i][place // BLOCK] * BLOCK + place % BLOCK for i, place in flat
    ]
    assert arrays.query_start.tolist() == [0, *np.cumsum(chunks).tolist()]
    assert arrays.query_lens.tolist() == chunks
    assert arrays.seq_lens.tolist() == [a + b for a, b in zip(computed, chunks, strict=True)]
    assert arrays.max_blocks == max(map(len, blocks))
    assert arrays.block_ids.tolist() == [block for some in blocks for block in some]
    assert arrays.block_places.tolist() == [
        row * MAX_BLOCKS + j
        for row, some in zip(rows, blocks, strict=True)
        for j in range(len(some))
    ]
    assert arrays.sampled.tolist() == [i for i in range(count) if sample[i]]


def test_a_reused_row_forgets_its_predecessor() -> None:
    table = RowTable(2, MAX_LEN, BLOCK)
    table.start(1, [1] * 20)
    table.gather(StepInput([1], [0], [20], [[5, 6, 7]], [True]), {})
    table.start(1, [3, 4])
    table.gather(StepInput([1], [0], [2], [[9]], [True]), {})
    arrays = table.gather(StepInput([1], [2], [1], [[]], [True]), {})
    assert arrays.given_rows.tolist() == [], "the device has its token"
    assert arrays.slot_mapping.tolist() == [9 * BLOCK + 2]
    assert arrays.block_ids.tolist() == []
    arrays = table.gather(StepInput([1], [8], [1], [[4]], [True]), {})
    assert arrays.block_places.tolist() == [MAX_BLOCKS + 1]
