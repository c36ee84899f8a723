"""Steps get smaller while memory is short, and larger again."""

from __future__ import annotations

from dropless.engine.step_size import StepSize


def test_it_halves_what_lacked_memory() -> None:
    size = StepSize(100)
    tried = []
    for num_tokens in (10, 5, 1):  # though steps of 100 were allowed
        size.failed(num_tokens)
        tried.append(size.tokens)
    assert tried == [5, 2, 1]
    size = StepSize(8192)
    size.failed(1)
    assert size.tokens == 32


def test_it_grows_back_after_many_good_steps() -> None:
    size = StepSize(100)
    size.failed(100)
    size.failed(50)
    sizes = []
    for _ in range(1000):
        size.succeeded()
        sizes.append(size.tokens)
    assert sizes == [25] * 255 + [50] * 256 + [100] * 489


def test_it_says_when_it_has_grown_and_counts_anew_after_a_failure() -> None:
    size = StepSize(8)
    assert not size.succeeded()
    size.failed(8)
    assert not any(size.succeeded() for _ in range(255))
    size.failed(4)
    assert not any(size.succeeded() for _ in range(255))
    assert size.succeeded()
    assert size.tokens == 4
