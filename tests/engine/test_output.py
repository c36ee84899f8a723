from __future__ import annotations

import itertools
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from dropless.engine.messages import FinishReason, TokenDelta, TokenLogprob
from dropless.engine.output import OutputText, TextDelta
from dropless.engine.sampling_params import SamplingParams
from tests.text.vocabularies import byte_tokenizer

TOKENIZER = byte_tokenizer(extra=[b"ab", b"ba", "aé".encode(), b"\xa9"])
EOS = 256


def delta(
    token_ids: list[int],
    finish_reason: FinishReason | None = None,
    stop_token_id: int | None = None,
) -> TokenDelta:
    entries = [TokenLogprob(token_id, -float(token_id), []) for token_id in token_ids]
    return TokenDelta("r", token_ids, finish_reason, stop_token_id, entries)


def run(params: SamplingParams, deltas: list[TokenDelta], **settings: bool) -> list[TextDelta]:
    """What a caller sees who stops at the first finish_reason."""
    output = OutputText(TOKENIZER, params, **settings)
    seen = []
    for each in deltas:
        seen.append(output.push(each))
        if seen[-1].finish_reason is not None:
            break
    return seen


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def test_end_of_sequence_shows_no_text_and_no_token() -> None:
    params = SamplingParams(logprobs=0)
    seen = run(params, [delta(ids("Hi")), delta([*ids("!"), EOS], "stop", EOS)])
    assert [each.text for each in seen] == ["Hi", "!"]
    assert seen[1].token_ids == ids("!")
    assert seen[1].logprobs == [TokenLogprob(33, -33.0, [])]
    assert (seen[1].finish_reason, seen[1].stop_reason) == ("stop", None)


def test_a_stop_token_of_the_request_is_its_stop_reason() -> None:
    params = SamplingParams(stop_token_ids=(33,))
    seen = run(params, [delta(ids("Hi!"), "stop", 33)])
    assert seen[0].text == "Hi"
    assert (seen[0].finish_reason, seen[0].stop_reason) == ("stop", 33)
    assert seen[0].logprobs is None


def test_a_stop_string_ends_the_text_before_the_engine_knows() -> None:
    params = SamplingParams(stop=("END",), logprobs=0)
    seen = run(params, [delta(ids(text)) for text in ("one E", "two EN", "D three", "four")])
    assert [each.text for each in seen] == ["one ", "Etwo ", ""]
    assert [TOKENIZER.decode(each.token_ids) for each in seen] == ["one ", "Etwo ", ""]
    assert (seen[-1].finish_reason, seen[-1].stop_reason) == ("stop", "END")


def test_held_text_comes_with_the_end() -> None:
    params = SamplingParams(stop=("END",))
    seen = run(params, [delta(ids("one EN")), delta(ids("D"[:0]), "abort")])
    assert [each.text for each in seen] == ["one ", "EN"]
    assert seen[1].token_ids == ids("EN")
    assert (seen[1].finish_reason, seen[1].stop_reason) == ("abort", None)


def test_leading_space_is_kept_only_where_a_text_continues() -> None:
    tokenizer = byte_tokenizer(leading_space=True)
    answer = OutputText(tokenizer, SamplingParams(stop=("x",)))
    first = answer.push(delta([32, 97, 120]))
    assert (first.text, first.token_ids) == ("a", [32, 97])
    going_on = OutputText(tokenizer, SamplingParams(stop=("x",)), continues_text=True)
    assert going_on.push(delta([32, 97])).text == " a"


token_lists = st.lists(st.sampled_from([97, 98, 99, 0xC3, 0xA9, 257, 259, 260, 261, 262]))


@settings(max_examples=300)
@given(
    token_lists,
    st.lists(st.integers(0, 30)),
    st.lists(st.text("abcé", min_size=1, max_size=3), max_size=3),
    st.booleans(),
)
def test_text_and_tokens_do_not_depend_on_the_cuts(
    token_ids: list[int], cuts: list[int], stop: list[str], include_stop: bool
) -> None:
    params = SamplingParams(stop=tuple(stop), include_stop=include_stop, logprobs=0)
    bounds = [0, *sorted(min(cut, len(token_ids)) for cut in cuts), len(token_ids)]
    pieces = [token_ids[a:b] for a, b in itertools.pairwise(bounds)]
    deltas = [delta(piece) for piece in pieces[:-1]] + [delta(pieces[-1], "length")]
    seen = run(params, deltas)
    whole = run(params, [delta([t]) for t in token_ids] + [delta([], "length")])
    text = "".join(each.text for each in seen)
    visible = [token for each in seen for token in each.token_ids]
    reported = [entry.token_id for each in seen for entry in each.logprobs or ()]
    assert text == "".join(each.text for each in whole)
    assert visible == [token for each in whole for token in each.token_ids]
    assert reported == visible == token_ids[: len(visible)]
    assert seen[-1].finish_reason == whole[-1].finish_reason
    everything = TOKENIZER.decode(token_ids)
    if any(s in everything for s in stop):
        assert seen[-1].finish_reason == "stop"
        assert seen[-1].stop_reason in stop
        assert everything.startswith(text)
    else:
        assert (text, seen[-1].finish_reason) == (everything, "length")
        assert visible == token_ids


def test_output_needs_no_torch() -> None:
    code = "import sys, dropless.engine.output; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
