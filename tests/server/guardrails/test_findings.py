"""What is found in pieces is found once in the whole."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dropless.encoder.messages import Entity, Verdict
from dropless.server.guardrails.findings import Findings, masked
from dropless.server.guardrails.judge import VerdictMemory, add


def verdict(*entities: tuple[int, int, str], **scores: float) -> Verdict:
    found = [Entity(*entity) for entity in entities]
    return Verdict(0, scores, [name for name, score in scores.items() if score > 0.5], found, None)


def test_an_entity_that_two_pieces_see_is_one() -> None:
    findings = Findings()
    add(findings, verdict((10, 14, "PHONE_NUMBER"), (90, 99, "PHONE_NUMBER"), violence=0.2), 0)
    add(findings, verdict((0, 19, "CREDIT_CARD"), (30, 35, "US_SSN"), violence=0.7), 90)
    assert findings.entities == [
        Entity(10, 14, "PHONE_NUMBER"),
        Entity(90, 109, "CREDIT_CARD"),
        Entity(120, 125, "US_SSN"),
    ]
    assert (findings.scores, findings.unsafe) == ({"violence": 0.7}, {"violence"})


def test_an_entity_that_the_second_piece_ends_takes_in_what_the_first_saw_of_it() -> None:
    findings = Findings()
    add(findings, verdict((80, 84, "A"), (85, 89, "B"), (90, 95, "C")), 0)
    add(findings, verdict((2, 20, "D")), 80)
    assert findings.entities == [Entity(80, 100, "D")]


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=6)


def apart(spans: list[tuple[int, int]]) -> list[tuple[int, int, str]]:
    kept: list[tuple[int, int, str]] = []
    for start, length in sorted(spans):
        if not kept or start >= kept[-1][1]:
            kept.append((start, start + length, "X"))
    return kept


@given(SPANS, SPANS, st.integers(0, 60))
def test_entities_stay_apart_and_cover_all_that_was_seen(
    first: list[tuple[int, int]], second: list[tuple[int, int]], begin: int
) -> None:
    before = apart(first)
    judged = max([begin, *(end for _, end, _ in before)])
    after = [(s, e, kind) for s, e, kind in apart(second) if begin + e > judged]
    findings = Findings()
    add(findings, verdict(*before), 0)
    add(findings, verdict(*after), begin)
    found = findings.entities
    assert all(a.end <= b.start for a, b in pairwise(found))
    seen = {i for s, e, _ in before for i in range(s, e)}
    seen |= {i + begin for s, e, _ in after for i in range(s, e)}
    assert seen <= {i for entity in found for i in range(entity.start, entity.end)}


def test_masking() -> None:
    text = "Ada, a@b.de or 12"
    entities = [Entity(5, 11, "EMAIL_ADDRESS"), Entity(15, 17, "ID")]
    assert masked(text, entities) == "Ada, <EMAIL_ADDRESS> or <ID>"
    assert masked(text, []) == text


def test_only_the_last_verdicts_are_remembered() -> None:
    memory = VerdictMemory(size=2)
    memory.put(b"a", verdict())
    memory.put(b"b", verdict())
    assert memory.get(b"a") is not None
    memory.put(b"c", verdict())
    assert memory.get(b"b") is None
    assert memory.get(b"a") is not None
