"""The terminal chat: reading, commands, memory of the conversation, interruption."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from dropless.cli.chat_session import ChatSession, Message, Piece, read_message
from dropless.errors import EngineDeadError


class Parrot:
    """A backend that repeats the last message word by word and keeps what it was sent."""

    def __init__(self) -> None:
        self.seen: list[list[Message]] = []
        self.stopped = False

    async def start(self) -> str:
        return "parrot"

    async def answer(
        self, messages: list[Message], sampling: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        del sampling
        self.seen.append(list(messages))
        text = messages[-1]["content"]
        if text == "die":
            raise EngineDeadError("the engine is gone")
        for word in text.split():
            if word == "interrupt":
                raise KeyboardInterrupt
            yield Piece(word + " ", 1)

    async def stop(self) -> None:
        self.stopped = True


def _reader(*lines: str | type[BaseException]) -> Callable[[str], str]:
    script: Iterator[str | type[BaseException]] = iter(lines)

    def read(_prompt: str) -> str:
        item = next(script, EOFError)
        if isinstance(item, str):
            return item
        raise item

    return read


def _talk(*lines: str | type[BaseException], system: str | None = None) -> tuple[Parrot, str]:
    parrot, screen = Parrot(), io.StringIO()
    console = Console(file=screen, width=100, highlight=False)
    ChatSession(parrot, {"temperature": 0}, system, read=_reader(*lines), console=console).run()
    assert parrot.stopped
    return parrot, screen.getvalue()


def test_the_conversation_is_remembered() -> None:
    parrot, screen = _talk("one two", "three", system="be brief")
    assert [(m["role"], m["content"]) for m in parrot.seen[-1]] == [
        ("system", "be brief"),
        ("user", "one two"),
        ("assistant", "one two "),
        ("user", "three"),
    ]
    assert "one two" in screen
    assert "2 tokens" in screen
    assert "tokens/s" in screen


def test_reset_forgets_and_system_replaces() -> None:
    parrot, _ = _talk("a", "/reset", "b", "/system be kind", "c", system="be brief")
    assert [[m["content"] for m in seen] for seen in parrot.seen] == [
        ["be brief", "a"],
        ["be brief", "b"],
        ["be kind", "c"],
    ]


def test_help_and_unknown_commands() -> None:
    parrot, screen = _talk("/help", "/nonsense", "/system", "/quit", "never sent")
    assert not parrot.seen
    assert "/system TEXT" in screen
    assert "There is no /nonsense" in screen


def test_markup_in_an_answer_is_text() -> None:
    assert "[bold]x[/]" in _talk("[bold]x[/]")[1]


def test_an_answer_cannot_command_the_terminal() -> None:
    parrot, screen = _talk("\x1b[2Jgone\x9b2J")
    assert "\x1b" not in screen
    assert "\x9b" not in screen
    assert parrot.seen


def test_a_failed_turn_is_forgotten_and_the_chat_goes_on() -> None:
    parrot, screen = _talk("die", "hello")
    assert "the engine is gone" in screen
    assert [m["content"] for m in parrot.seen[-1]] == ["hello"]


def test_an_interrupted_answer_is_kept_and_the_next_interrupt_leaves() -> None:
    parrot, screen = _talk("so far interrupt more", KeyboardInterrupt, "never sent")
    assert "stopped" in screen
    assert len(parrot.seen) == 1
    parrot, _ = _talk("so far interrupt more", "go on")
    assert [m["content"] for m in parrot.seen[-1]][1:] == ["so far ", "go on"]


def test_two_interrupts_at_the_prompt_leave_one_does_not() -> None:
    parrot, _ = _talk(KeyboardInterrupt, "still here", KeyboardInterrupt, KeyboardInterrupt, "no")
    assert [m["content"] for m in parrot.seen[-1]] == ["still here"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""', "one", "", "two", '"""'], "one\n\ntwo"),
        (['"""one', 'two"""'], "one\ntwo"),
        (['"""one"""'], "one"),
        (["/help"], "/help"),
    ],
)
def test_messages_of_several_lines(lines: list[str], message: str) -> None:
    assert read_message(_reader(*lines)) == message
