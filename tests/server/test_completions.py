"""/v1/completions through the official client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.tiny_model import MODEL_ID

GREEDY: Any = {
    "model": MODEL_ID,
    "temperature": 0,
    "max_tokens": 12,
    "extra_body": {"ignore_eos": True},
}
PROMPT = "Name the rivers, naïve 漢字"


def test_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(**GREEDY, prompt=PROMPT)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_sixteen_tokens_unless_said_otherwise(client: openai.OpenAI) -> None:
    asked: Any = {key: value for key, value in GREEDY.items() if key != "max_tokens"}
    usage = client.completions.create(**asked, prompt=PROMPT).usage
    assert usage is not None
    assert usage.completion_tokens == 16


def test_token_ids_are_taken_as_they_are(client: openai.OpenAI) -> None:
    ids = [40, 50, 60]
    answer = client.completions.create(**GREEDY, prompt=ids)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    both = client.completions.create(**GREEDY, prompt=[ids, ids[::-1]])
    assert both.choices[0].text == answer.choices[0].text
    assert both.choices[1].text != both.choices[0].text


def test_several_prompts_with_several_answers(client: openai.OpenAI) -> None:
    prompts = ["one", "two", "three"]
    answer = client.completions.create(**GREEDY, prompt=prompts, n=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    for i, prompt in enumerate(prompts):
        alone = client.completions.create(**GREEDY, prompt=prompt).choices[0].text
        assert [choice.text for choice in answer.choices[2 * i : 2 * i + 2]] == [alone, alone]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6 * 12


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = client.completions.create(**GREEDY, prompt=["one", "two"])
    texts = ["", ""]
    for chunk in client.completions.create(**GREEDY, prompt=["one", "two"], stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_and_logprobs_cover_prompt_and_answer(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {**GREEDY, "prompt": PROMPT, "echo": True, "logprobs": 2}
    if stream:
        text, logprobs = "", {key: [] for key in ("tokens", "token_logprobs", "text_offset")}
        for chunk in client.completions.create(**asked, stream=True):
            text += chunk.choices[0].text
            if chunk.choices[0].logprobs is not None:
                for key, values in logprobs.items():
                    values += getattr(chunk.choices[0].logprobs, key)
    else:
        choice = client.completions.create(**asked).choices[0]
        assert choice.logprobs is not None
        text, logprobs = choice.text, choice.logprobs.model_dump()
    assert text.startswith(PROMPT)
    assert len(text) > len(PROMPT)
    assert logprobs["token_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert token.startswith("bytes:") or text[offset:].startswith(token)


def test_scoring_a_text_gives_the_logprobs_it_was_made_with(client: openai.OpenAI) -> None:
    """The answer's logprobs from decoding equal those from prefill of the same tokens: they are
    the model's own in both, whatever changes sampling."""
    ids = [70, 71, 72, 73]
    changes: Any = {"temperature": 1.7, "frequency_penalty": 1.5, "seed": 3}
    made = client.completions.create(
        **{**GREEDY, **changes, "extra_body": {"ignore_eos": True, "top_k": 50}},
        prompt=ids,
        logprobs=0,
    )
    assert made.choices[0].logprobs is not None
    expected = made.choices[0].logprobs.token_logprobs
    tokens = made.choices[0].logprobs.tokens
    assert expected is not None
    assert tokens is not None
    whole = client.completions.create(
        model=MODEL_ID,
        prompt=ids + _ids_of(client, tokens),
        echo=True,
        max_tokens=0,
        logprobs=1,
    )
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 0
    scored = whole.choices[0].logprobs
    assert scored is not None
    assert scored.token_logprobs is not None
    assert scored.token_logprobs[len(ids) :] == pytest.approx(expected, abs=1e-4)


def _ids_of(client: openai.OpenAI, tokens: list[str]) -> list[int]:
    """Ids by asking the server for the name of every id: one prompt, echoed."""
    everything = list(range(300))
    echoed = client.completions.create(
        model=MODEL_ID, prompt=everything, echo=True, max_tokens=0, logprobs=0
    )
    assert echoed.choices[0].logprobs is not None
    names = echoed.choices[0].logprobs.tokens
    assert names is not None
    return [names.index(token) for token in tokens]


def test_a_continued_text_keeps_its_space(client: openai.OpenAI) -> None:
    """The text of the answer is what follows, to the byte: prompt plus answer reads on."""
    echoed = client.completions.create(**GREEDY, prompt=PROMPT, echo=True).choices[0].text
    alone = client.completions.create(**GREEDY, prompt=PROMPT).choices[0].text
    assert echoed == PROMPT + alone
