"""The guardrails of a server: calls are judged on their way in, answers on their way out."""

from __future__ import annotations

from contextlib import aclosing
from typing import Generic, TypeVar

from dropless.encoder.client import EncoderClient
from dropless.engine.output import TextDelta
from dropless.errors import InvalidRequestError
from dropless.server.call import Call
from dropless.server.endpoints.endpoint import Endpoint
from dropless.server.generation import Deltas, Generation
from dropless.server.guardrails.blocked import REFUSAL, blocked
from dropless.server.guardrails.findings import merged
from dropless.server.guardrails.judge import TextJudge, VerdictMemory
from dropless.server.guardrails.screen import Screen
from dropless.server.guardrails.settings import GuardrailParameters
from dropless.server.guardrails.texts import (
    anonymized,
    anonymized_answer,
    texts_of,
    topic_text,
    with_masks,
)
from dropless.server.protocol import ChatBody, CompletionBody, GenerationBody

B = TypeVar("B", bound=GenerationBody)


class Guardrails:
    """Those of all endpoints. Without rules and safety mode a call costs one comparison."""

    def __init__(self, encoder: EncoderClient) -> None:
        self._encoder = encoder
        self._memory = VerdictMemory()

    async def judge(self, call: Call, endpoint: Endpoint, body: B) -> JudgedCall[B] | None:
        """Judge what goes in; None if there is nothing to judge, neither there nor later.

        Raises:
            GuardrailBlockedError: the endpoint's rules forbid it.
            InvalidRequestError: the rules cannot be kept with a field of the body.
            EncoderUnavailableError: it cannot be judged.
        """
        settings, safety_mode = endpoint.settings.guardrails, body.safety_mode
        if settings.is_off and not safety_mode:
            return None
        if settings.output.pii.behavior == "MASK" and _wants_logprobs(body):
            raise InvalidRequestError(
                "logprobs would show what this endpoint masks in its answers; leave them out",
                param="logprobs",
            )
        owner = "" if call.principal is None else call.principal.name

        def judge(rules: GuardrailParameters) -> TextJudge:
            return TextJudge(self._encoder, self._memory, owner, rules, safety=safety_mode)

        judged, unsafe = await _judge_input(judge(settings.input), settings.input, body)
        return JudgedCall(judged, settings.output, judge(settings.output), safety_mode, unsafe)


class JudgedCall(Generic[B]):
    """A call whose input is judged: `body` is what to serve of it."""

    def __init__(
        self,
        body: B,
        rules: GuardrailParameters,
        judge: TextJudge,
        safety_mode: bool,
        refused: bool,
    ) -> None:
        self.body = body
        self.refused = refused  # it is answered without the model
        self._rules = rules
        self._judge = judge
        self._safety_mode = safety_mode

    def output(self, generation: Generation, *, streams: bool) -> Deltas:
        """The deltas to show for the generation's own.

        Raises:
            GuardrailBlockedError: the rules forbid an answer of which nothing is out yet.
            EncoderUnavailableError: something cannot be judged.
        """
        if self.refused:
            return _refusals(generation)
        if self._rules.is_off and not self._safety_mode:
            return generation.deltas()
        return self._screened(generation, streams)

    async def _screened(self, generation: Generation, streams: bool) -> Deltas:
        screens = [
            Screen(self._judge, self._rules, safety_mode=self._safety_mode, streams=streams)
            for _ in generation.choices
        ]
        async with aclosing(generation.deltas()) as deltas:
            async for choice, delta in deltas:
                screen = screens[choice.index]
                if screen.ended:
                    continue
                shown, forbidden = await screen.push(delta)
                begun = streams and any(each.has_shown for each in screens)
                if forbidden is not None and not begun:
                    entry = forbidden.findings.entry(
                        "anonymized_output", anonymized_answer(self.body, forbidden.anonymized)
                    )
                    raise blocked("output", entry, generation.usage())
                if shown is not None:
                    yield choice, shown
                if screen.ended and delta.finish_reason is None:
                    await generation.drop(choice)


async def _refusals(generation: Generation) -> Deltas:
    for choice in generation.choices:
        yield choice, TextDelta(REFUSAL, [], None, "content_filter", None)


async def _judge_input(judge: TextJudge, rules: GuardrailParameters, body: B) -> tuple[B, bool]:
    """The body to serve, and whether it is to be answered with a refusal."""
    texts = texts_of(body)
    found = await judge.judge(texts, topic_of=topic_text(body) if rules.valid_topics else None)
    whole = merged(found)
    hidden = with_masks(body, [each.entities for each in found]) if whole.entities else body
    if whole.block(rules):
        raise blocked("input", whole.entry("anonymized_input", anonymized(hidden)), None)
    return (hidden if rules.pii.behavior == "MASK" else body), bool(whole.unsafe)


def _wants_logprobs(body: GenerationBody) -> bool:
    if isinstance(body, ChatBody):
        return bool(body.logprobs)
    return isinstance(body, CompletionBody) and body.logprobs is not None
