"""The conversation in the terminal: reading, commands, streaming an answer, timing it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console

from dropless.errors import DroplessError

HELP = """\
/system TEXT   set the system prompt and start over; /system alone shows it
/reset         forget the conversation, keep the system prompt
/help          this list
/quit          leave (also Ctrl-D, or Ctrl-C twice)

End a line with \\ to go on in the next, or put several lines between \"\"\" and \"\"\"."""

Message = dict[str, str]

# A model may write what a terminal obeys: all control characters but line break and tab go.
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: text that may be empty, and how many new tokens are behind it."""

    text: str
    tokens: int


class Backend(Protocol):
    """Where answers come from."""

    async def start(self) -> str:
        """Be ready; returns the model's name for the greeting."""
        ...

    def answer(
        self, messages: list[Message], sampling: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        """The answer as it comes. Closing the generator stops the work."""
        ...

    async def stop(self) -> None: ...


class ChatSession:
    """One conversation. `read` asks for a line with a prompt and raises EOFError at the end."""

    def __init__(
        self,
        backend: Backend,
        sampling: dict[str, Any],
        system: str | None = None,
        *,
        read: Callable[[str], str] = input,
        console: Console | None = None,
    ) -> None:
        self._backend = backend
        self._sampling = sampling
        self._system = system
        self._messages: list[Message] = []
        self._interrupted = False  # by a Ctrl-C with nothing typed since: the next one leaves
        self._read = read
        self._console = console or Console(highlight=False)

    def run(self) -> None:
        """Talk until the user leaves.

        Raises:
            DroplessError: the backend cannot start.
        """
        with asyncio.Runner() as runner:
            try:
                name = runner.run(self._backend.start())
                self._console.print(f"[bold]{name}[/]  [dim]/help for help[/]")
                while (text := self._next_input()) is not None:
                    if text.startswith("/"):
                        if not self._command(text):
                            break
                    elif text.strip():
                        self._exchange(runner, text)
            finally:
                runner.run(self._backend.stop())

    def _next_input(self) -> str | None:
        """What the user typed, or None to leave: Ctrl-D, or Ctrl-C twice."""
        while True:
            try:
                text = read_message(self._read)
            except EOFError:
                self._console.print()
                return None
            except KeyboardInterrupt:
                self._console.print()
                if self._interrupted:
                    return None
                self._interrupted = True
                self._console.print("[dim]Ctrl-C again to leave[/]")
            else:
                self._interrupted = False
                return text

    def _command(self, text: str) -> bool:
        """Obey a line that begins with a slash; False to leave."""
        name, _, rest = text.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/reset":
            self._messages.clear()
            self._console.print("[dim]The conversation starts over.[/]")
        elif name == "/system" and rest.strip():
            self._system = rest.strip()
            self._messages.clear()
            self._console.print("[dim]System prompt set; the conversation starts over.[/]")
        elif name == "/system":
            self._console.print(self._system or "the model's own", style="dim", markup=False)
        else:
            if name != "/help":
                self._console.print(f"There is no {name}.", style="red", markup=False)
            self._console.print(HELP, style="dim", markup=False)
        return True

    def _exchange(self, runner: asyncio.Runner, text: str) -> None:
        """Ask, show the answer and its speed, remember both. A failed turn is forgotten."""
        self._messages.append({"role": "user", "content": text})
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        answer: list[str] = []
        try:
            runner.run(self._stream([*system, *self._messages], answer))
        except KeyboardInterrupt:
            self._interrupted = True
            self._console.print("\n[dim]stopped; Ctrl-C again to leave[/]")
        except DroplessError as error:
            self._console.print(f"\n{error}", style="red", markup=False)
        if answer:
            self._messages.append({"role": "assistant", "content": "".join(answer)})
        else:
            self._messages.pop()

    async def _stream(self, messages: list[Message], answer: list[str]) -> None:
        """Print pieces as they come and collect them in `answer`."""
        start = time.perf_counter()
        first: float | None = None
        tokens = 0
        async with aclosing(self._backend.answer(messages, self._sampling)) as pieces:
            async for piece in pieces:
                if first is None:
                    first = time.perf_counter()
                tokens += piece.tokens
                if piece.text:
                    answer.append(piece.text)
                    self._console.out(piece.text.translate(_CONTROL), end="", highlight=False)
                    self._console.file.flush()
        self._console.print(f"\n[dim]{_speed(start, first, tokens)}[/]\n")


def _speed(start: float, first: float | None, tokens: int) -> str:
    now = time.perf_counter()
    if first is None:
        return f"no answer in {now - start:.2f} s"
    rate = f", {(tokens - 1) / (now - first):.1f} tokens/s" if tokens > 1 else ""
    return f"{tokens} tokens{rate}, first after {first - start:.2f} s"


def read_message(read: Callable[[str], str]) -> str:
    """One message: a line, lines joined by a trailing backslash, or lines between triple quotes."""
    line = read("> ")
    if line.lstrip().startswith('"""'):
        lines = [line.lstrip()[3:]]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(read("... "))
        lines[-1] = lines[-1].rstrip()[:-3]
        return "\n".join(lines).strip("\n")
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read("... "))
    return "\n".join(lines)
