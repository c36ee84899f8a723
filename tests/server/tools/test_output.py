"""Text and calls of one sequence, with the tokens and log probabilities of the text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.engine.messages import FinishReason, TokenDelta, TokenLogprob
from dropless.engine.output import OutputText
from dropless.engine.sampling_params import SamplingParams
from dropless.server.protocol import ChatBody
from dropless.server.tools.output import CallingOutput
from tests.text.vocabularies import byte_tokenizer

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_ids[0]
TOOL = {"type": "function", "function": {"name": "get"}}
CALL = '<tool_call>\n{"name": "get", "arguments": {"a": 1}}\n</tool_call>'


def output_of(stop: str | None = None, choice: str = "auto") -> CallingOutput:
    body = ChatBody.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "tools": [TOOL],
            "tool_choice": choice,
        }
    )
    use = body.tool_use()
    assert use is not None
    params = SamplingParams(logprobs=0, stop=() if stop is None else (stop,))
    return CallingOutput(OutputText(TOKENIZER, params), use)


def deltas_of(text: str, sizes: list[int], reason: FinishReason) -> list[TokenDelta]:
    """One token a byte, in deltas of these sizes, and the end."""
    ids = list(text.encode())
    deltas = []
    for size in [*sizes, len(ids)]:
        some, ids = ids[:size], ids[size:]
        deltas.append(TokenDelta("r", some, logprobs=[TokenLogprob(i, -i, []) for i in some]))
    if reason == "stop":
        end = TokenLogprob(END, -1.0, [])
        deltas.append(TokenDelta("r", [END], "stop", stop_token_id=END, logprobs=[end]))
    else:
        deltas[-1].finish_reason = reason
    return deltas


def read(output: CallingOutput, deltas: list[TokenDelta]) -> tuple[str, list[Any], Any]:
    """The text, the calls' arguments by name, and the reason; tokens are those of the text."""
    text, calls, ids, logprobs, reason = "", [], [], [], None
    for delta in deltas:
        if reason is not None:
            break
        shown = output.push(delta)
        text += shown.text
        for piece in shown.calls:
            if piece.name is not None:
                calls.append([piece.name, ""])
            calls[-1][1] += piece.arguments
        ids += shown.token_ids
        logprobs += shown.logprobs or []
        reason = shown.finish_reason
    assert [entry.token_id for entry in logprobs] == ids
    assert bytes(ids).decode() == text
    return text, calls, reason


@settings(max_examples=50)
@given(
    st.sampled_from(["", "Let me see.", "a < b\n", " \n"]),
    st.sampled_from(["", CALL, f"{CALL}\n{CALL}"]),
    st.lists(st.integers(0, 30), max_size=12),
)
def test_the_same_by_any_deltas(before: str, calls: str, sizes: list[int]) -> None:
    text, found, reason = read(output_of(), deltas_of(before + calls, sizes, "stop"))
    assert text == (before.rstrip() if calls else before)
    assert found == [["get", '{"a": 1}']] * calls.count("<tool_call>")
    assert reason == ("tool_calls" if calls else "stop")


@pytest.mark.parametrize(
    ("written", "stop", "shown", "num_calls", "reason"),
    [
        ("Hi " + CALL, "H", "", 0, "stop"),
        ("Hi " + CALL, "<tool_call>", "Hi ", 0, "stop"),
        ("Hi " + CALL, "name", "Hi", 0, "length"),
        ("Hi " + CALL, "1", "Hi", 1, "length"),
        ("Hi " + CALL, "</tool_call>", "Hi", 1, "tool_calls"),
    ],
)
def test_stop_strings(written: str, stop: str, shown: str, num_calls: int, reason: str) -> None:
    text, calls, ended = read(output_of(stop), deltas_of(written, [7, 9, 40], "stop"))
    assert (text, len(calls), ended) == (shown, num_calls, reason)


@pytest.mark.parametrize(
    ("written", "shown", "arguments"),
    [
        ("Hi", "Hi", None),
        ("Hi <tool_ca", "Hi", None),
        ("Hi " + CALL[:30], "Hi", None),
        ("Hi " + CALL[: CALL.index("1")], "Hi", '{"a": '),
        (CALL[:-2], "", '{"a": 1}'),
    ],
)
def test_what_max_tokens_cut(written: str, shown: str, arguments: str | None) -> None:
    text, calls, reason = read(output_of(), deltas_of(written, [3, 3], "length"))
    assert (text.strip(), reason) == (shown, "length")
    assert [call[1] for call in calls] == ([] if arguments is None else [arguments])


def test_only_calls() -> None:
    text, calls, reason = read(output_of(choice="required"), deltas_of(CALL, [1], "stop"))
    assert (text, reason) == ("", "tool_calls")
    assert json.loads(calls[0][1]) == {"a": 1}
