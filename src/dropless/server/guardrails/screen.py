"""One choice of an answer on its way out: held back, judged, shown."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from dropless.engine.messages import FinishReason, TokenLogprob
from dropless.engine.output import TextDelta
from dropless.server.guardrails.blocked import REFUSAL
from dropless.server.guardrails.findings import Findings, masked
from dropless.server.guardrails.held_calls import HeldCalls
from dropless.server.guardrails.hold_back import HoldBack
from dropless.server.guardrails.judge import CONTEXT_CHARACTERS, TextJudge
from dropless.server.guardrails.settings import GuardrailParameters
from dropless.text.tool_calls import CallPiece

# An answer's topic is judged once, when it has said so much.
TOPIC_CHARACTERS = 200


@dataclass(slots=True)
class _Shown:
    """What was judged and is not out yet."""

    text: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Forbidden:
    """What the rules forbid; `anonymized` is the answer up to there, as far as it is not out, with
    personal data masked."""

    findings: Findings
    anonymized: str


class Screen:
    """`streams` says that what is judged goes out at once; else it is kept to the end, so that a
    refusal takes the place of all of it. With `safety_mode` what is unsafe ends in a refusal where
    the rules do not forbid it."""

    def __init__(
        self, judge: TextJudge, rules: GuardrailParameters, *, safety_mode: bool, streams: bool
    ) -> None:
        self.ended = False  # nothing may be pushed any more
        self.has_shown = False  # some text, or a call, is out
        self._judge = judge
        self._rules = rules
        self._safety_mode = safety_mode
        self._streams = streams
        self._topic_is_open = bool(rules.valid_topics)
        self._hold = HoldBack(first=TOPIC_CHARACTERS if self._topic_is_open else 0)
        self._calls = HeldCalls()
        self._context = ""  # the end of what was judged, as it came
        self._came = self._judged = 0  # characters
        self._waiting: deque[tuple[int, TextDelta]] = deque()  # where its text ends; for its tokens
        self._shown = _Shown()
        self._logprobs = False  # whether they are asked for

    async def push(self, delta: TextDelta) -> tuple[TextDelta | None, Forbidden | None]:
        """What may be shown after this delta, None if nothing; and what the rules forbid: the
        answer then ends before it.

        Raises:
            EncoderUnavailableError: it cannot be judged.
        """
        self._came += len(delta.text)
        self._hold.push(delta.text)
        self._waiting.append((self._came, delta))
        self._logprobs = self._logprobs or delta.logprobs is not None
        self.ended = delta.finish_reason is not None
        text, cut = self._hold.ready(ended=self.ended or bool(delta.calls))
        if text:
            topic_of = text if self._topic_is_open else None
            findings = await self._judge.judge_next(self._context, text, topic_of=topic_of)
            self._topic_is_open = False
            if findings.block(self._rules):
                hidden = self._shown.text + masked(text, findings.entities)
                return self._filtered(), Forbidden(findings, hidden)
            if self._safety_mode and findings.unsafe:
                return self._refused(), None
            self._let_go(cut, findings)
        for call in self._calls.take(delta.calls, ended=self.ended):
            findings = await self._judge.judge_next("", call.judged.text)
            if findings.block(self._rules):
                hidden = self._shown.text + call.pieces(findings.entities)[1].arguments
                return self._filtered(), Forbidden(findings, hidden)
            if self._safety_mode and findings.unsafe:
                return self._refused(), None
            masks = self._rules.pii.behavior == "MASK"
            self._shown.calls += call.pieces(findings.entities if masks else [])
        if self.ended:
            self._let_tokens_go()
            return self._out(delta.finish_reason, delta.stop_reason), None
        goes_out = self._streams and (cut or self._shown.calls)
        return (self._out() if goes_out else None), None

    def _let_go(self, cut: int, findings: Findings) -> None:
        """Show what was judged up to `cut`, masked where the rules say so."""
        taken, inside = self._hold.take(cut, findings.entities)
        self._context = (self._context + taken)[-CONTEXT_CHARACTERS:]
        self._judged += len(taken)
        if self._rules.pii.behavior == "MASK":
            taken = masked(taken, findings.entities[:inside])
        self._shown.text += taken
        self._let_tokens_go()

    def _let_tokens_go(self) -> None:
        """A token is never out before all text that came with it."""
        while self._waiting and self._waiting[0][0] <= self._judged:
            _, delta = self._waiting.popleft()
            self._shown.token_ids += delta.token_ids
            self._shown.logprobs += delta.logprobs or []

    def _filtered(self) -> TextDelta:
        """The end of an answer that goes no further."""
        self.ended = True
        return self._out("content_filter")

    def _refused(self) -> TextDelta:
        if not self._streams:
            self._shown = _Shown()
        self._shown.text += f"\n\n{REFUSAL}" if self.has_shown else REFUSAL
        return self._filtered()

    def _out(
        self, finish_reason: FinishReason | None = None, stop_reason: str | int | None = None
    ) -> TextDelta:
        shown, self._shown = self._shown, _Shown()
        self.has_shown = self.has_shown or bool(shown.text) or bool(shown.calls)
        logprobs = shown.logprobs if self._logprobs else None
        return TextDelta(
            shown.text, shown.token_ids, logprobs, finish_reason, stop_reason, shown.calls
        )
