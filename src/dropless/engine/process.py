"""The engine process: `python -m dropless.engine.process`, started by `AsyncEngineClient`.

The main thread alone touches the engine; `Mailbox` owns the socket on a thread of its own, and
`GrammarThread` compiles grammars on another.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dropless import logs
from dropless.engine import transport
from dropless.engine.config import EngineConfig
from dropless.engine.grammar_thread import Compiled, GrammarThread
from dropless.engine.mailbox import Mailbox
from dropless.engine.messages import (
    AbortRequests,
    EngineReady,
    EngineRequest,
    EngineStats,
    LoadProgress,
    Shutdown,
    StepDeltas,
    TokenDelta,
)
from dropless.errors import DroplessError, EngineError, SettingsError

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Steppable(Protocol):
    """What the loop needs of `dropless.engine.engine.Engine`."""

    def compile_grammar(self, message: EngineRequest) -> object: ...
    def known_grammar(self, message: EngineRequest) -> object: ...
    def add_request(self, request: EngineRequest) -> None: ...
    def abort(self, request_ids: list[str]) -> list[TokenDelta]: ...
    def has_work(self) -> bool: ...
    def step(self) -> list[TokenDelta]: ...
    def stats(self) -> EngineStats: ...
    def expert_counts(self) -> list[list[int]]: ...
    def close(self) -> None: ...


Builder = Callable[[EngineConfig, Callable[[str, float], None]], tuple[Steppable, EngineReady]]


def serve(engine: Steppable, mailbox: Mailbox) -> None:
    """Steps the engine while it has work and sleeps while it has none, until Shutdown."""
    grammars = GrammarThread(engine.compile_grammar, mailbox.bring)
    while True:
        for message in mailbox.take(wait=not engine.has_work()):
            if isinstance(message, Shutdown):
                return
            _handle(engine, mailbox, grammars, message)
        if engine.has_work():
            mailbox.step_begins(engine.stats())
            mailbox.post(StepDeltas(engine.step()))
        mailbox.step_ends(engine.stats())


def _handle(
    engine: Steppable,
    mailbox: Mailbox,
    grammars: GrammarThread,
    message: EngineRequest | Compiled | AbortRequests,
) -> None:
    if isinstance(message, AbortRequests):
        waited = [TokenDelta(name, [], "abort") for name in grammars.abort(message.request_ids)]
        mailbox.post(StepDeltas(waited + engine.abort(message.request_ids)))
    elif isinstance(message, EngineRequest):
        known = engine.known_grammar(message)  # held until the request holds it
        if message.params.grammar is None or known is not None:
            _or_refuse(mailbox, message, lambda: engine.add_request(message))
        else:
            _or_refuse(mailbox, message, lambda: grammars.put(message))
    elif grammars.takes_back(message.request.request_id):
        _or_refuse(mailbox, message.request, lambda: _add_compiled(engine, message))


def _add_compiled(engine: Steppable, compiled: Compiled) -> None:
    if compiled.error is not None:
        raise compiled.error
    engine.add_request(compiled.request)


def _or_refuse(mailbox: Mailbox, request: EngineRequest, take: Callable[[], None]) -> None:
    """What goes wrong is the request's refusal."""
    try:
        take()
    except DroplessError as error:
        mailbox.post(transport.refusal(request.request_id, error))
    except Exception as error:  # one request must not end all others
        fields = {"request_id": request.request_id}
        logger.exception("could not add request %s", request.request_id, extra={"fields": fields})
        wrapped = EngineError(f"the engine could not take the request: {error!r}")
        mailbox.post(transport.refusal(request.request_id, wrapped))


def run(directory: Path, parent_pid: int, builder: str) -> int:
    """Builds the engine and serves until told to stop. Returns the exit status."""
    mailbox = Mailbox(directory, parent_pid)
    try:
        config = transport.read_config(directory)
        build = _load_builder(builder)
        engine, ready = build(config, lambda stage, done: mailbox.post(LoadProgress(stage, done)))
        signal.signal(signal.SIGTERM, lambda *_: mailbox.shut_down())
        mailbox.step_ends(engine.stats())
        mailbox.expert_counts = engine.expert_counts
        mailbox.post(ready)
        serve(engine, mailbox)
        engine.close()
    except Exception as error:
        if isinstance(error, DroplessError):
            logger.error("the engine stops: %s", error)
        else:
            logger.exception("the engine stops")
        transport.write_failure(directory, error)
        return 1
    finally:
        mailbox.close()
    return 0


def _load_builder(name: str) -> Builder:
    """`package.module:function`; imported late, because it brings torch."""
    module, _, function = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"cannot load the engine builder {name!r}: {error}") from error
    build: Builder = found
    return build


def _die_with(parent_pid: int) -> None:
    """Asks the kernel to kill this process when its parent dies, however that happens."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before we asked
        sys.exit(1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    faulthandler.enable()
    parser = argparse.ArgumentParser(prog="dropless.engine.process", description=__doc__)
    parser.add_argument("directory", type=Path, help="private folder: config.json, socket")
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--builder", required=True, help="module:function that builds the engine")
    parser.add_argument("--log-format", choices=logs.FORMATS, default="text")
    arguments = parser.parse_args()
    logs.configure(arguments.log_format, part="engine")
    _die_with(arguments.parent_pid)
    status = run(arguments.directory, arguments.parent_pid, arguments.builder)
    os._exit(status)  # nothing is left to save, and tearing down a broken runtime can hang


if __name__ == "__main__":
    main()
