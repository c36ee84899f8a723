"""Answers with calls on their way out: judged when they are whole. Keywords need no encoder."""

from __future__ import annotations

import asyncio

from dropless.encoder.client import EncoderClient
from dropless.engine.messages import FinishReason
from dropless.engine.output import TextDelta
from dropless.server.guardrails.judge import TextJudge, VerdictMemory
from dropless.server.guardrails.screen import Forbidden, Screen
from dropless.server.guardrails.settings import GuardrailParameters
from dropless.text.tool_calls import CallPiece

RULES = GuardrailParameters(invalid_keywords=("blue river",))


def delta(text: str = "", *calls: CallPiece, reason: FinishReason | None = None) -> TextDelta:
    return TextDelta(text, [], None, reason, None, list(calls))


def screened(*deltas: TextDelta, streams: bool = True) -> list[TextDelta | Forbidden]:
    """What is shown, and at last what was forbidden."""

    async def run() -> list[TextDelta | Forbidden]:
        judge = TextJudge(EncoderClient(), VerdictMemory(), "", RULES, safety=False)
        screen = Screen(judge, RULES, safety_mode=False, streams=streams)
        seen: list[TextDelta | Forbidden] = []
        for each in deltas:
            shown, forbidden = await screen.push(each)
            seen += [shown] if shown is not None else []
            seen += [forbidden] if forbidden is not None else []
        return seen

    return asyncio.run(run())


BEGUN = CallPiece(0, "go")
ARGUMENTS = '{"to": "a green river"}'


def test_the_text_before_is_out_when_a_call_begins_and_the_call_when_it_is_whole() -> None:
    shown = screened(
        delta("Let me"),
        delta(" see", BEGUN, CallPiece(0, None, ARGUMENTS[:8])),
        delta("", CallPiece(0, None, ARGUMENTS[8:], ended=True), CallPiece(1, "go")),
        delta("", CallPiece(1, None, "{}", ended=True)),
        delta(reason="tool_calls"),
    )
    assert shown == [
        delta("Let me see"),
        delta("", BEGUN, CallPiece(0, None, ARGUMENTS, ended=True)),
        delta("", CallPiece(1, "go"), CallPiece(1, None, "{}", ended=True)),
        delta(reason="tool_calls"),
    ]


def test_without_a_stream_all_comes_at_the_end() -> None:
    call = (BEGUN, CallPiece(0, None, ARGUMENTS, ended=True))
    shown = screened(delta("Hm.", *call), delta(reason="tool_calls"), streams=False)
    assert shown == [delta("Hm.", *call, reason="tool_calls")]


def test_a_forbidden_argument_ends_the_answer_before_its_call() -> None:
    arguments = '{"to": "the blue\\nriver"}'
    shown = screened(
        delta("Hm.", BEGUN),
        delta("", CallPiece(0, None, arguments[:18])),
        delta("", CallPiece(0, None, arguments[18:], ended=True)),
    )
    assert shown[0] == delta("Hm.")
    assert shown[1] == delta(reason="content_filter")
    assert isinstance(shown[2], Forbidden)
    assert shown[2].findings.keywords == ["blue river"]


def test_a_call_that_was_cut_is_judged_too() -> None:
    pieces = (BEGUN, CallPiece(0, None, '{"to": "the blue river'))
    shown = screened(delta("", *pieces), delta(reason="length"))
    assert shown[0] == delta(reason="content_filter")
    safe = (BEGUN, CallPiece(0, None, '{"to": "the bl'))
    assert screened(delta("", *safe), delta(reason="length")) == [delta("", *safe, reason="length")]
