"""Records survive whatever cuts a file off."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.tables.records import Record, RecordEncoder, decode_records
from dropless.tables.rows import PayloadRow, ServedEntityRow, UsageRow

text = st.text(max_size=8)
time = st.integers(0, 2**60)
maybe_text = st.none() | text
count = st.none() | st.integers(0, 2**40)
status = st.integers(0, 999)

payload_rows = st.builds(
    PayloadRow,
    text,
    st.integers(-1000, 10**6),
    maybe_text,
    time,
    status,
    st.floats(0, 1),
    count,
    maybe_text,
    maybe_text,
    st.lists(text, max_size=2).map(tuple),
    maybe_text,
    maybe_text,
)
usage_rows = st.builds(
    UsageRow,
    time,
    status,
    maybe_text,
    text,
    maybe_text,
    maybe_text,
    count,
    count,
    st.none() | st.dictionaries(text, text, max_size=2),
)
entity_rows = st.builds(ServedEntityRow, text, text, text, maybe_text, st.integers(0, 999), time)
record_lists = st.lists(
    st.builds(
        Record,
        text,
        st.booleans(),
        st.lists(payload_rows | usage_rows | entity_rows, max_size=2).map(tuple),
    ),
    max_size=4,
)


def encoded(records: list[Record]) -> list[bytes]:
    encoder = RecordEncoder()
    return [bytes(encoder.encode(record)) for record in records]


@settings(max_examples=15)
@given(record_lists)
def test_any_beginning_of_a_file_has_exactly_its_whole_records(records: list[Record]) -> None:
    parts = encoded(records)
    file = b"".join(parts)
    ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
    whole = list(zip(records, ends, strict=True))
    for cut in range(len(file) + 1):
        expected = [(record, end) for record, end in whole if end <= cut]
        assert list(decode_records(file[:cut])) == expected


@settings(max_examples=15)
@given(record_lists, st.integers(0, 200))
def test_zeros_after_the_last_record_are_no_records(records: list[Record], zeros: int) -> None:
    file = b"".join(encoded(records))
    assert [record for record, _ in decode_records(file + bytes(zeros))] == records


@settings(max_examples=30)
@given(record_lists.filter(bool), st.data())
def test_a_changed_byte_ends_the_reading_there(records: list[Record], data: st.DataObject) -> None:
    parts = encoded(records)
    file = bytearray(b"".join(parts))
    place = data.draw(st.integers(0, len(file) - 1))
    file[place] ^= data.draw(st.integers(1, 255))
    before = 0
    while sum(map(len, parts[: before + 1])) <= place:
        before += 1
    assert [record for record, _ in decode_records(bytes(file))] == records[:before]
