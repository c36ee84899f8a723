"""Grammars are compiled on a thread of their own: one may take seconds, which nobody's steps
wait for. Owners take turns, so that nobody's many grammars are before another's one."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dropless.engine.messages import EngineRequest
from dropless.errors import EngineOverloadedError

_MOST_WAITING = 256  # a grammar takes milliseconds as a rule, seconds at worst
_RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Compiled:
    """A request that may be added now, and its grammar, which is found while it is held here; or
    why it may not."""

    request: EngineRequest
    grammar: object = None
    error: Exception | None = None


class GrammarThread:
    """Between the mailbox and the engine: requests with a grammar wait here for it, in the order of
    their owner's. The engine process' main thread calls all methods."""

    def __init__(
        self, compile_grammar: Callable[[EngineRequest], object], done: Callable[[Compiled], None]
    ) -> None:
        """Both are called on the thread: the first may raise anything, the second brings what came
        of it to the main thread, which then asks `takes_back`."""
        self._compile = compile_grammar
        self._done = done
        self._waiting: set[str] = set()
        self._changed = threading.Condition()  # and the lock of the queues
        self._queues: OrderedDict[str, deque[EngineRequest]] = OrderedDict()  # whose turn: first
        threading.Thread(target=self._run, name="grammars", daemon=True).start()

    def put(self, request: EngineRequest) -> None:
        """Let a request wait until its grammar is compiled.

        Raises:
            EngineOverloadedError: too many wait already.
        """
        if len(self._waiting) >= _MOST_WAITING:
            raise EngineOverloadedError(
                f"{len(self._waiting)} requests wait for their grammars to be compiled. Try again"
                f" in {_RETRY_AFTER_S:g} s",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._waiting.add(request.request_id)
        with self._changed:
            self._queues.setdefault(request.owner, deque()).append(request)
            self._changed.notify()

    def abort(self, request_ids: Sequence[str]) -> list[str]:
        """Those of them that wait here, and do no longer."""
        here = [request_id for request_id in request_ids if request_id in self._waiting]
        self._waiting.difference_update(here)
        return here

    def takes_back(self, request_id: str) -> bool:
        """Whether what has been compiled is still wanted; it does not wait here any more."""
        is_wanted = request_id in self._waiting
        self._waiting.discard(request_id)
        return is_wanted

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queues)
                owner, queue = next(iter(self._queues.items()))
                request = queue.popleft()
            # One that was aborted is not worth the time. The main thread may change the set at any
            # moment: it looks again.
            if request.request_id in self._waiting:
                self._done(self._compiled(request))
            with self._changed:
                if queue:
                    self._queues.move_to_end(owner)
                else:
                    del self._queues[owner]

    def _compiled(self, request: EngineRequest) -> Compiled:
        try:
            return Compiled(request, self._compile(request))
        except Exception as error:
            return Compiled(request, error=error)
