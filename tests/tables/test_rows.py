"""Samples and bodies."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropless.tables.rows import MAX_LOGGED_BYTES, logged, sampled


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_sample_is_part_of_a_larger_one(call: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert sampled(call, high) or not sampled(call, low)


def test_a_sample_has_its_share() -> None:
    calls = [f"req-{uuid.UUID(int=i * 0x9E3779B97F4A7C15).hex}" for i in range(4000)]
    for fraction in (0.0, 0.1, 0.5, 1.0):
        assert sum(sampled(call, fraction) for call in calls) / 4000 == pytest.approx(
            fraction, abs=0.03
        )


def test_bodies_up_to_a_mebibyte_are_kept() -> None:
    assert logged(b"a" * MAX_LOGGED_BYTES, "CODE") == ("a" * MAX_LOGGED_BYTES, ())
    assert logged(b"a" * (MAX_LOGGED_BYTES + 1), "CODE") == (None, ("CODE",))
    assert logged(None, "CODE") == (None, ())


@given(st.binary(max_size=50))
def test_any_bytes_become_a_text(body: bytes) -> None:
    text, codes = logged(body, "CODE")
    assert codes == ()
    assert text is not None
    text.encode()  # has no half of a surrogate pair
