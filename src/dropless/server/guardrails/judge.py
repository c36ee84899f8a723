"""Asks for verdicts about texts: piece by piece, and only once about what was judged before."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from dropless.encoder.client import EncoderClient
from dropless.encoder.messages import Entity, Judge, Verdict
from dropless.server.guardrails.findings import Findings, higher
from dropless.server.guardrails.keywords import compiled
from dropless.server.guardrails.sentences import pieces
from dropless.server.guardrails.settings import GuardrailParameters

PIECE_CHARACTERS = 400  # a few sentences: in a longer one a bad sentence is lost among good ones
CONTEXT_CHARACTERS = 100  # of the text before that a piece is judged with
REMEMBERED = 8192  # verdicts, of about 1 kB
LARGE_TEXT = 20_000  # characters; keywords are looked for in larger ones off the event loop


class VerdictMemory:
    """The verdicts given last. A conversation comes again whole with each turn; only what is new
    in it has to be judged. What one caller sent is not remembered for another, who could else tell
    from the time it takes."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._size = size
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()

    def get(self, key: bytes) -> Verdict | None:
        verdict = self._verdicts.get(key)
        if verdict is not None:
            self._verdicts.move_to_end(key)
        return verdict

    def put(self, key: bytes, verdict: Verdict) -> None:
        self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > self._size:
            self._verdicts.popitem(last=False)


class TextJudge:
    """Judges texts of one caller by one direction's rules. `safety` asks for safety scores even
    where the rules do not."""

    def __init__(
        self,
        encoder: EncoderClient,
        memory: VerdictMemory,
        owner: str,
        rules: GuardrailParameters,
        *,
        safety: bool,
    ) -> None:
        self._encoder = encoder
        self._memory = memory
        self._owner = owner
        self._ask = Judge(
            0,
            "",
            safety=safety or rules.safety,
            entities=rules.entities,
            injection=rules.prompt_injection,
        )
        self._topics = rules.valid_topics
        self._keywords = compiled(rules.invalid_keywords)

    async def judge(self, texts: Sequence[str], *, topic_of: str | None = None) -> list[Findings]:
        """What is in each text; in the first, how near `topic_of` is to an allowed topic.

        Raises:
            EncoderUnavailableError: it cannot be told.
        """
        return await self._judge(texts, 0, topic_of)

    async def judge_next(self, context: str, text: str, *, topic_of: str | None = None) -> Findings:
        """What is in a text that follows on one which was judged already. Of what reaches over
        from there only the part in this text is told. Raises what `judge` raises."""
        begin = len(context)
        [found] = await self._judge([context + text], begin, topic_of)
        found.entities = [
            Entity(max(0, e.start - begin), e.end - begin, e.kind) for e in found.entities
        ]
        return found

    async def _judge(
        self, texts: Sequence[str], begin: int, topic_of: str | None
    ) -> list[Findings]:
        found = [Findings(keywords=await self._find_keywords(text)) for text in texts]
        places: list[tuple[Findings, int]] = []  # of each piece, and its first character there
        asked: list[Judge] = []
        if self._ask.safety or self._ask.entities or self._ask.injection:
            for text, findings in zip(texts, found, strict=True):
                for start, end in pieces(text, begin, PIECE_CHARACTERS):
                    first = max(0, start - CONTEXT_CHARACTERS)
                    asked.append(replace(self._ask, text=text[first:end], start=start - first))
                    places.append((findings, first))
        if topic_of is not None and self._topics:
            asked.append(Judge(0, topic_of, topics=self._topics))
        verdicts = await self._verdicts(asked)
        for (findings, first), verdict in zip(places, verdicts, strict=False):
            add(findings, verdict, first)
        if len(verdicts) > len(places):
            found[0].topic = verdicts[-1].topic
        return found

    async def _find_keywords(self, text: str) -> list[str]:
        if len(text) <= LARGE_TEXT:
            return self._keywords.find(text)
        return await asyncio.to_thread(self._keywords.find, text)

    async def _verdicts(self, asked: Sequence[Judge]) -> list[Verdict]:
        keys = [self._key(piece) for piece in asked]
        known = {key: verdict for key in keys if (verdict := self._memory.get(key)) is not None}
        new = {key: piece for key, piece in zip(keys, asked, strict=True) if key not in known}
        verdicts = await self._encoder.judge(list(new.values())) if new else []
        for key, verdict in zip(new, verdicts, strict=True):
            known[key] = verdict
            self._memory.put(key, verdict)
        return [known[key] for key in keys]

    def _key(self, piece: Judge) -> bytes:
        content = msgspec.msgpack.encode((self._owner, piece))
        return hashlib.blake2b(content, digest_size=16).digest()


def add(findings: Findings, verdict: Verdict, before: int) -> None:
    """Take in the verdict on a piece whose text begins at character `before`, and whose entities
    all reach beyond the pieces before it."""
    for name, score in verdict.scores.items():
        findings.scores[name] = max(score, findings.scores.get(name, 0.0))
    findings.unsafe.update(verdict.unsafe)
    findings.injection = higher(findings.injection, verdict.injection)
    for found in verdict.entities:
        entity = Entity(found.start + before, found.end + before, found.kind)
        taken = findings.entities
        while taken and taken[-1].end > entity.start:  # cut by the pieces, and whole only now
            entity = Entity(min(taken.pop().start, entity.start), entity.end, entity.kind)
        taken.append(entity)
