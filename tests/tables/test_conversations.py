"""Notebooks and training sets."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from dropless.errors import TableError
from dropless.tables import InferenceTable
from dropless.tables.conversations import (
    Conversation,
    Wanted,
    read_conversation,
    without_repetitions,
)
from dropless.tables.export import Export, export_chats
from dropless.tables.rows import PayloadRow
from dropless.tables.table_name import USAGE
from dropless.tables.table_store import TableStore
from tests.tables.made_up import NOON, TABLE, chat, payload, usage

DAY_US = 86_400_000_000
BLUE = ("Why is the sky blue?", "Because of scattering.")


def cut_off(call: str) -> PayloadRow:
    bodies = chat("Tell a story.", "Once upon a")
    return payload(call, **bodies | {"response": bodies["response"].replace("stop", "length")})


ROWS = [
    payload("first", time=NOON, **chat(*BLUE)),
    payload("second", time=NOON + 1, **chat("And red?", "At dusk.", BLUE)),
    payload("same", time=NOON + 2, requester="bob", **chat("And red?", "At dusk.", BLUE)),
    payload("other answer", time=NOON + 3, **chat("And red?", "In the evening.", BLUE)),
    payload("later", time=NOON + DAY_US, **chat("Bye", "See you")),
    payload("failed", status=500, **chat("Fail", "No")),
    cut_off("cut"),
    payload("no chat", request='{"prompt": "The sky"}', response='{"choices": [{"text": "is"}]}'),
    payload("no json", request="\x00", response="?"),
    payload("no answer", response='{"choices": []}'),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TableStore:
    store = TableStore(str(tmp_path_factory.mktemp("tables")))
    store.commit(TABLE, ROWS, "app", 1)
    store.commit(USAGE, [usage("first")], "app", 1)
    return store


@pytest.fixture(scope="module")
def table(store: TableStore) -> InferenceTable:
    return InferenceTable(store.uri(TABLE))


def request_ids(table: InferenceTable, **wanted: Any) -> list[str]:
    return [c.request_id for c in table.conversations(Wanted(**wanted))]


def test_conversations_come_with_their_answers(table: InferenceTable) -> None:
    first, second, *others = table.conversations()
    assert first.messages == [
        {"role": "user", "content": BLUE[0]},
        {"role": "assistant", "content": BLUE[1]},
    ]
    assert len(second.messages) == 4
    assert (first.requester, first.finish_reason, first.total_tokens) == ("ada", "stop", 7)
    assert first.request_time.isoformat() == "2024-10-04T12:00:00+00:00"
    assert [c.request_id for c in others] == ["same", "other answer", "later"]


def test_conversations_are_chosen(table: InferenceTable) -> None:
    assert request_ids(table, status_code=500) == ["failed"]
    assert "cut" in request_ids(table, cut_off=True)
    assert request_ids(table, requester="bob") == ["same"]
    assert request_ids(table, since=datetime.date(2024, 10, 5)) == ["later"]
    assert "later" not in request_ids(table, until=datetime.date(2024, 10, 4))
    assert request_ids(table, max_tokens=5) == ["later"]
    assert "first" not in request_ids(table, min_tokens=8)
    assert request_ids(table, where="databricks_request_id LIKE 'sec%'") == ["second"]
    with pytest.raises(TableError, match="columns of"):
        request_ids(table, where="nosuch = 1")
    with pytest.raises(TableError, match="must be one"):
        request_ids(table, where="true); SELECT (1")


def test_parts_that_are_texts_become_one(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = json.dumps({"messages": [{"role": "user", "content": parts}]})
    store.commit(TABLE, [payload("a", **chat("?", "!") | {"request": request})], "app", 1)
    [conversation] = InferenceTable(store.uri(TABLE)).conversations()
    assert conversation.messages[0] == {"role": "user", "content": "ab"}


def test_arrow_and_pandas(table: InferenceTable) -> None:
    assert table.to_arrow().num_rows == len(ROWS)
    frame = table.to_pandas(where="status_code >= 400")
    assert frame["databricks_request_id"].tolist() == ["failed"]
    assert str(frame["request_time"].dtype) == "datetime64[us, UTC]"
    [[count]] = table.query("SELECT count(*) FROM tiny_payload")
    assert count == len(ROWS)
    assert [row.databricks_request_id for row in table.search("See you")] == ["later"]
    with pytest.raises(TableError, match="columns of"):
        table.to_arrow(where="nosuch")


def test_what_is_no_inference_table(store: TableStore) -> None:
    with pytest.raises(TableError, match=r"there is no table main\.default\.none"):
        InferenceTable(f"{store.location}/main/default/none_payload")
    with pytest.raises(TableError, match="has no conversations"):
        next(InferenceTable(store.uri(USAGE)).conversations())


def exported(store: TableStore, out: Path, **options: Any) -> tuple[Export, list[list[str]]]:
    wanted = options.pop("wanted", Wanted())
    done = export_chats(store, TABLE, wanted, out, **options)
    texts = [
        [m["content"] for m in json.loads(line)["messages"]] for line in out.open(encoding="utf-8")
    ]
    return done, texts


def test_a_set_has_each_conversation_once(store: TableStore, tmp_path: Path) -> None:
    out = tmp_path / "set.jsonl"
    done, texts = exported(store, out)
    assert texts == [
        [*BLUE, "And red?", "At dusk."],
        [*BLUE, "And red?", "In the evening."],
        ["Bye", "See you"],
    ]
    assert (done.written, done.repeated, done.unfit) == ({out: 3}, 2, 4)
    done, texts = exported(store, out, repetitions=True)
    assert len(texts) == 5
    assert done.repeated == 0


def test_the_split_stays_the_same_when_the_table_grows(tmp_path: Path) -> None:
    store = TableStore(str(tmp_path / "tables"))
    out = tmp_path / "set.jsonl"
    rows = [
        payload(f"call-{i}-{answer}", time=NOON + i, **chat(f"What is {i}?", answer))
        for i in range(300)
        for answer in ("one", "two")
    ]
    store.commit(TABLE, rows[:200], "app", 1)
    _, few = exported(store, out, test_share=0.3)
    store.commit(TABLE, rows[200:], "app", 2)
    done, many = exported(store, out, test_share=0.3)
    test = [json.loads(line) for line in (tmp_path / "set.test.jsonl").open(encoding="utf-8")]
    assert all(texts in many for texts in few)
    assert len(many) + len(test) == sum(done.written.values()) == 600
    assert 0.2 < len(test) / 600 < 0.4
    asked = {texts[0] for texts in many}
    assert not any(c["messages"][0]["content"] in asked for c in test)


def test_calls_results_and_functions_belong_to_a_conversation() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "sky", "arguments": "{}"}}
    tools = [{"type": "function", "function": {"name": "sky"}}]
    asked = {"role": "user", "content": "Is it blue?"}
    called = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c", "content": "yes"}
    answer = {"role": "assistant", "content": "It is."}

    def logged(messages: list[Any], message: Any, reason: str) -> Conversation:
        request = json.dumps({"model": "m", "messages": messages, "tools": tools})
        response = json.dumps({"choices": [{"message": message, "finish_reason": reason}]})
        time = datetime.datetime(2024, 10, 4)
        read = read_conversation("r", time, None, request, response)
        assert read is not None
        assert Wanted().takes(read)
        return read

    first = logged([asked], called, "tool_calls")
    second = logged([asked, called, result], answer, "stop")
    assert first.body()["messages"][1] == {"role": "assistant", "tool_calls": [call]}
    assert second.body() == {"messages": [asked, called, result, answer], "tools": tools}
    assert list(without_repetitions(lambda: [first, second])) == [second]
