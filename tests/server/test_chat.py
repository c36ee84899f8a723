"""/v1/chat/completions through the official client, over real sockets, from a real engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from tests.server.server_process import ServerProcess
from tests.server.tiny_model import CONTROL, MODEL_ID

MESSAGES: Any = [{"role": "user", "content": "Name three colours."}]
GREEDY: Any = {"model": MODEL_ID, "messages": MESSAGES, "temperature": 0, "max_tokens": 24}
NO_END: Any = {"ignore_eos": True}


def test_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, extra_body=NO_END)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL_ID
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_greedy_is_the_same_again_and_by_stream(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**GREEDY, extra_body=NO_END)
    again = client.chat.completions.create(**GREEDY, extra_body=NO_END)
    stream = client.chat.completions.create(**GREEDY, stream=True, extra_body=NO_END)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert first.choices[0].message.content == again.choices[0].message.content == streamed


def test_a_stream_has_openais_shape(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        **GREEDY, stream=True, stream_options={"include_usage": True}, extra_body=NO_END
    )
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    first, *middle, last, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert not first.choices[0].delta.content
    assert all(chunk.choices[0].delta.content for chunk in middle)
    assert all(chunk.choices[0].finish_reason is None for chunk in middle)
    assert last.choices[0].finish_reason == "length"
    assert not last.choices[0].delta.content
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 24
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_raw_stream_ends_with_done(server: ServerProcess) -> None:
    response = httpx.post(
        f"{server.url}/v1/chat/completions", json={**GREEDY, "stream": True}, timeout=30
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert all("usage" not in json.loads(event[6:]) for event in events[:-2])


def test_timings_where_asked(client: openai.OpenAI) -> None:
    asked = {"include_timings": True, **NO_END}
    body = client.chat.completions.create(**GREEDY, extra_body=asked).model_dump()
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, extra_body=asked))
    for timings in (body["timings"], chunks[-1].model_dump()["timings"]):
        assert 0 <= timings["queue_ms"] <= timings["ttft_ms"] <= timings["total_ms"]
        assert timings["decode_tokens_per_s"] > 0
        assert timings["cached_tokens"] >= 0
    plain = client.chat.completions.create(**GREEDY, extra_body=NO_END).model_dump()
    assert "timings" not in plain


def test_a_repeated_prompt_is_found_in_the_cache(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "The same long question again and again. " * 8}]
    asked: Any = {**GREEDY, "messages": messages}
    first = client.chat.completions.create(**asked).usage
    second = client.chat.completions.create(**asked).usage
    assert first is not None
    assert second is not None
    assert first.prompt_tokens_details is not None
    assert second.prompt_tokens_details is not None
    cached = second.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert first.prompt_tokens - 17 <= cached < second.prompt_tokens  # whole blocks of 16


def test_several_answers(client: openai.OpenAI) -> None:
    sampled: Any = {**GREEDY, "temperature": 1, "seed": 7, "extra_body": NO_END}
    several = client.chat.completions.create(**sampled, n=3)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert several.usage is not None
    assert several.usage.completion_tokens == 3 * 24
    again = client.chat.completions.create(**sampled, n=3)
    assert texts == [choice.message.content for choice in again.choices]
    for i in range(3):  # answer i is the one of seed + i
        alone = client.chat.completions.create(**{**sampled, "seed": 7 + i})
        assert alone.choices[0].message.content == texts[i]


def test_several_answers_by_stream(client: openai.OpenAI) -> None:
    sampled: Any = {**GREEDY, "temperature": 1, "seed": 7, "n": 3, "extra_body": NO_END}
    expected = [c.message.content for c in client.chat.completions.create(**sampled).choices]
    texts, roles, ends = [""] * 3, [0] * 3, [0] * 3
    for chunk in client.chat.completions.create(**sampled, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role is not None
        ends[choice.index] += choice.finish_reason is not None
    assert texts == expected
    assert roles == ends == [1, 1, 1]


def test_logprobs(client: openai.OpenAI) -> None:
    asked: Any = {**GREEDY, "logprobs": True, "top_logprobs": 3, "extra_body": NO_END}
    answer = client.chat.completions.create(**asked)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 24
    data = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert data.decode(errors="replace") == answer.choices[0].message.content
    for entry in logprobs.content:
        best = [top.logprob for top in entry.top_logprobs]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert entry.logprob <= best[0] <= 0
    streamed = [
        entry.logprob
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices and chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == pytest.approx([entry.logprob for entry in logprobs.content], abs=1e-4)


def test_prompt_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, extra_body={"prompt_logprobs": 2})
    entries = answer.model_dump()["choices"][0]["prompt_logprobs"]
    assert answer.usage is not None
    assert len(entries) == answer.usage.prompt_tokens
    assert entries[0] is None
    assert entries[1]["token"] in "user"
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries[1:])


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    text = client.chat.completions.create(**GREEDY, extra_body=NO_END).choices[0].message.content
    assert text is not None
    stop = text[len(text) // 2 :][:2]
    stopped = client.chat.completions.create(**GREEDY, stop=stop, extra_body=NO_END)
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    stream = client.chat.completions.create(**GREEDY, stop=stop, stream=True, extra_body=NO_END)
    chunks = list(stream)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_user_text_is_no_control_token(client: openai.OpenAI) -> None:
    spelled: Any = [{"role": "user", "content": CONTROL[2] * 10}]
    usage = client.chat.completions.create(**{**GREEDY, "messages": spelled}).usage
    assert usage is not None
    assert usage.prompt_tokens > 10 * 3


SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["colour", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(3))
def test_json_schema(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.create(
        model=MODEL_ID,
        messages=MESSAGES,
        seed=seed,
        max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}},
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert value["colour"] in ("red", "green")
    assert 0 <= value["count"] <= 99
    assert answer.choices[0].finish_reason == "stop"


def test_json_cut_short_is_still_json(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL_ID, messages=MESSAGES, max_tokens=30, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_choice_and_regex(client: openai.OpenAI) -> None:
    def constrained(**outputs: Any) -> str:
        answer = client.chat.completions.create(
            model=MODEL_ID,
            messages=MESSAGES,
            max_tokens=30,
            extra_body={"structured_outputs": outputs},
        )
        return answer.choices[0].message.content or ""

    assert constrained(choice=["yes", "no"]) in ("yes", "no")
    assert len(constrained(regex="[0-9]{4}")) == 4


def test_the_async_client_many_at_once(server: ServerProcess) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def one() -> str:
                stream = await client.chat.completions.create(
                    **GREEDY, stream=True, extra_body=NO_END
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(one() for _ in range(16)))

    assert len(set(asyncio.run(ask()))) == 1


def test_errors_reach_the_client_typed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(model="other", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**GREEDY, "temperature": 3})
    assert caught.value.param == "temperature"
    assert caught.value.request_id


def test_models_health_and_version(server: ServerProcess, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL_ID]
    assert client.models.retrieve(MODEL_ID).owned_by == "dropless"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    health = server.health().json()
    assert (health["status"], health["state"], health["restarts"]) == ("ok", "serving", 0)
    assert httpx.get(f"{server.url}/version").json().keys() == {"version"}
