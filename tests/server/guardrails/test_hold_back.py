"""What is held back comes out again, once and in order, whatever pieces it comes in."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dropless.encoder.messages import Entity
from dropless.server.guardrails.hold_back import MOST_CHARACTERS, STAYS_BEHIND, HoldBack
from dropless.server.guardrails.sentences import last_cut, pieces

TEXTS = st.text(st.sampled_from("ab .!?…。\n\"'”)5é漢\t"), max_size=1500)
CUTS = st.lists(st.integers(1, 90), max_size=60)


def chunks(text: str, sizes: list[int]) -> list[str]:
    parts, start = [], 0
    for size in sizes:
        parts.append(text[start : start + size])
        start += size
    return [*parts, text[start:]]


def judged(text: str, sizes: list[int], first: int = 0) -> list[str]:
    """What is shown after each judgement."""
    hold, shown = HoldBack(first), []
    *parts, last = chunks(text, sizes)
    for part, ended in [*((part, False) for part in parts), (last, True)]:
        hold.push(part)
        asked, cut = hold.ready(ended=ended)
        assert cut <= len(asked)
        if asked:
            shown.append(hold.take(cut, [])[0])
    assert hold.held == ""
    return shown


@given(TEXTS, CUTS, st.sampled_from([0, 200]))
def test_nothing_is_lost_or_changed(text: str, sizes: list[int], first: int) -> None:
    assert "".join(judged(text, sizes, first)) == text


@given(TEXTS)
def test_where_a_text_is_cut_does_not_depend_on_how_it_comes(text: str) -> None:
    letters = judged(text, [1] * len(text))
    by_sentence = [piece for piece in letters if piece]
    cuts = {len("".join(by_sentence[:i])) for i in range(1, len(by_sentence))}
    for cut in cuts:
        before = text[:cut]
        ends_sentence = last_cut(text[: cut + 1]) == cut or last_cut(before) == cut
        assert ends_sentence or max(map(len, by_sentence)) > MOST_CHARACTERS - STAYS_BEHIND - 2


@given(TEXTS, CUTS)
def test_no_more_is_held_than_a_long_sentence(text: str, sizes: list[int]) -> None:
    hold = HoldBack()
    for part in chunks(text, sizes):
        hold.push(part)
        asked, cut = hold.ready(ended=False)
        if asked:
            hold.take(cut, [])
            assert len(hold.held) <= max(MOST_CHARACTERS, len(part))


def test_an_entity_over_the_cut_stays_behind_whole() -> None:
    hold = HoldBack()
    hold.push("x" * 340 + " call 4111 1111 1111 1111 or " + "y" * 60)
    text, cut = hold.ready(ended=False)
    assert text == hold.held
    number = Entity(346, 365, "CREDIT_CARD")
    for wrong_cut in (350, 355, 360):
        again = HoldBack()
        again.push(text)
        assert again.take(wrong_cut, [number]) == (text[:346], 0)
        assert again.held == text[346:]
    assert hold.take(cut, [number]) == (text[:cut], 1)


def test_an_entity_that_is_all_there_is_goes_out_whole() -> None:
    hold = HoldBack()
    hold.push("a" * 450)
    _, cut = hold.ready(ended=False)
    assert cut == 450 - STAYS_BEHIND
    assert hold.take(cut, [Entity(0, 450, "URL")]) == ("a" * 450, 1)


def test_a_number_is_no_end_of_a_sentence() -> None:
    hold = HoldBack()
    for part in ("It is 3", ".", "5 m", ". Then", "..", "."):
        hold.push(part)
    text, cut = hold.ready(ended=False)
    assert text[:cut] == "It is 3.5 m."
    hold.take(cut, [])
    assert hold.ready(ended=False) == ("", 0)  # the ellipsis may go on
    hold.push(" ")
    assert hold.ready(ended=False)[0] == " Then..."


@given(TEXTS, st.integers(1, 300), st.integers(0, 100))
def test_pieces_are_the_text(text: str, most: int, start: int) -> None:
    cut = list(pieces(text, min(start, len(text)), most))
    assert "".join(text[a:b] for a, b in cut) == text[start:]
    assert all(0 < b - a <= most for a, b in cut)
    assert all(a == b for (_, a), (b, _) in pairwise(cut))
