"""Requests with grammars on their way into the engine, whose steps do not wait for them."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from dropless.engine import grammar_thread
from dropless.engine.mailbox import Mailbox
from dropless.engine.messages import (
    AbortRequests,
    EngineRequest,
    EngineStats,
    FromEngine,
    RequestRefused,
    Shutdown,
    StepDeltas,
    TokenDelta,
)
from dropless.engine.process import serve
from dropless.engine.sampling_params import GrammarSpec, SamplingParams
from dropless.errors import GrammarError

from .bare_client import BareClient
from .traffic import make_request


class SlowCompiler:
    """An engine each of whose steps gives every request a token for ever, and which compiles a
    grammar when it `may_compile`: "bad" and "broken" raise. It knows the grammar "known"."""

    def __init__(self) -> None:
        self.may_compile = threading.Event()
        self.added: list[str] = []
        self.live: set[str] = set()

    def compile_grammar(self, message: EngineRequest) -> object:
        assert self.may_compile.wait(20)
        assert message.params.grammar is not None
        if message.params.grammar.text == "bad":
            raise GrammarError("nothing satisfies it", param="response_format")
        if message.params.grammar.text == "broken":
            raise ZeroDivisionError
        return object()

    def known_grammar(self, message: EngineRequest) -> object:
        grammar = message.params.grammar
        return object() if grammar is not None and grammar.text == "known" else None

    def add_request(self, request: EngineRequest) -> None:
        self.added.append(request.request_id)
        self.live.add(request.request_id)

    def abort(self, request_ids: list[str]) -> list[TokenDelta]:
        ended = self.live & set(request_ids)
        self.live -= ended
        return [TokenDelta(request_id, [], "abort") for request_id in ended]

    def has_work(self) -> bool:
        return bool(self.live)

    def step(self) -> list[TokenDelta]:
        time.sleep(0.001)
        return [TokenDelta(request_id, [7]) for request_id in self.live]

    def stats(self) -> EngineStats:
        return EngineStats()

    def expert_counts(self) -> list[list[int]]:
        return []

    def close(self) -> None:
        pass


class Client(BareClient):
    def wait_for_token(self, request: EngineRequest) -> None:
        self.wait_for(lambda message: (request.request_id, None) in finishes(message))

    def wait_for_abort(self, request: EngineRequest) -> None:
        self.wait_for(lambda message: (request.request_id, "abort") in finishes(message))

    def wait_for_refusal(self, request: EngineRequest) -> RequestRefused:
        message = self.wait_for(lambda message: isinstance(message, RequestRefused))
        assert isinstance(message, RequestRefused)
        assert message.request_id == request.request_id
        return message


def finishes(message: FromEngine) -> list[tuple[str, str | None]]:
    if not isinstance(message, StepDeltas):
        return []
    return [(delta.request_id, delta.finish_reason) for delta in message.deltas]


def with_grammar(text: str, owner: str = "") -> EngineRequest:
    params = SamplingParams(max_tokens=8, grammar=GrammarSpec("regex", text))
    return EngineRequest(make_request().request_id, [5, 6], params, owner)


@pytest.fixture
def engine() -> SlowCompiler:
    return SlowCompiler()


@pytest.fixture
def client(engine: SlowCompiler) -> Iterator[Client]:
    """Of a process' loop around that engine."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="dropless-") as name:
        mailbox = Mailbox(Path(name), os.getppid())
        loop = threading.Thread(target=serve, args=(engine, mailbox))
        loop.start()
        client = Client(context, Path(name))
        yield client
        client.send(Shutdown())
        loop.join(20)
        engine.may_compile.set()
        mailbox.close()
        context.destroy(linger=0)
        assert not loop.is_alive()


def test_others_get_tokens_while_a_grammar_is_compiled(
    engine: SlowCompiler, client: Client
) -> None:
    running, constrained, late = make_request(), with_grammar("a"), make_request()
    client.send(running)
    client.send(constrained)
    client.send(late)
    for _ in range(5):
        client.wait_for_token(running)
        client.wait_for_token(late)
    assert constrained.request_id not in engine.added
    engine.may_compile.set()
    client.wait_for_token(constrained)


def test_a_known_grammar_waits_for_no_other(engine: SlowCompiler, client: Client) -> None:
    unknown, known = with_grammar("a"), with_grammar("known")
    client.send(unknown)
    client.send(known)
    client.wait_for_token(known)
    assert engine.added == [known.request_id]
    engine.may_compile.set()
    client.wait_for_token(unknown)


def test_owners_take_turns(engine: SlowCompiler, client: Client) -> None:
    many = [with_grammar("a", "ann") for _ in range(3)]
    bob, cid = with_grammar("b", "bob"), with_grammar("c", "cid")
    for request in (*many, bob, cid):
        client.send(request)
    running = make_request()
    client.send(running)
    client.wait_for_token(running)  # all others have arrived
    engine.may_compile.set()
    client.wait_for_token(many[2])
    first, second, third = (request.request_id for request in many)
    assert engine.added[1:] == [first, bob.request_id, cid.request_id, second, third]


def test_an_idle_engine_wakes_up_for_what_has_been_compiled(
    engine: SlowCompiler, client: Client
) -> None:
    constrained = with_grammar("a")
    client.send(constrained)
    engine.may_compile.set()
    client.wait_for_token(constrained)
    assert engine.added == [constrained.request_id]


def test_an_aborted_request_waits_no_longer_and_is_never_added(
    engine: SlowCompiler, client: Client
) -> None:
    compiling, behind, kept = with_grammar("a"), with_grammar("b"), with_grammar("c")
    for request in (compiling, behind, kept):
        client.send(request)
    client.send(AbortRequests([compiling.request_id, behind.request_id]))
    client.wait_for_abort(behind)
    engine.may_compile.set()
    client.wait_for_token(kept)
    assert engine.added == [kept.request_id]


@pytest.mark.parametrize(("text", "kind"), [("bad", "GrammarError"), ("broken", "EngineError")])
def test_a_grammar_that_cannot_be_compiled_is_its_requests_refusal(
    engine: SlowCompiler, client: Client, text: str, kind: str
) -> None:
    engine.may_compile.set()
    refused, other = with_grammar(text), with_grammar("a")
    client.send(refused)
    refusal = client.wait_for_refusal(refused)
    assert refusal.kind == kind
    assert refusal.param == ("response_format" if text == "bad" else None)
    client.send(other)
    client.wait_for_token(other)
    assert engine.added == [other.request_id]


def test_too_many_that_wait_are_refused(
    engine: SlowCompiler, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_thread, "_MOST_WAITING", 2)
    waiting, refused = [with_grammar("a"), with_grammar("b")], with_grammar("c")
    for request in (*waiting, refused):
        client.send(request)
    refusal = client.wait_for_refusal(refused)
    assert refusal.kind == "EngineOverloadedError"
    assert refusal.retry_after_s
    engine.may_compile.set()
    for request in waiting:
        client.wait_for_token(request)
