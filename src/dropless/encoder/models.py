"""What the encoder process has loaded, and how it answers a batch of messages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dropless.encoder.messages import (
    Embed,
    Embedded,
    Entity,
    Failed,
    FromEncoder,
    Judge,
    Prepare,
    Prepared,
    ToEncoder,
    Verdict,
)
from dropless.errors import DroplessError, EncoderUnavailableError

if TYPE_CHECKING:
    from torch import Tensor

    from dropless.encoder.embedder import Embedder
    from dropless.encoder.injection import InjectionScorer
    from dropless.encoder.pii import PiiFinder

logger = logging.getLogger(__name__)


class Models:
    """Loads what `Prepare` asks for, and imports it only then, for that takes seconds. Answers
    every message, whatever is wrong with it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._embedder: Embedder | None = None
        self._pii: PiiFinder | None = None
        self._injection: InjectionScorer | None = None

    def answer(self, batch: Sequence[ToEncoder]) -> list[FromEncoder]:
        """One reply for each message. All texts go through the embedding model together."""
        try:
            vectors = self._vectors(batch)
        except Exception as error:
            if len(batch) > 1:  # one of them: the others shall not fail with it
                return [reply for message in batch for reply in self.answer([message])]
            logger.exception("could not encode a text")
            return [_failed(batch[0], error)]
        return [self._reply(*pair) for pair in zip(batch, vectors, strict=True)]

    def _vectors(self, batch: Sequence[ToEncoder]) -> list[Tensor | None]:
        """Of each message's windows [n, depths, hidden]; None where none are needed."""
        windows = [self._windows(message) for message in batch]
        texts = [window for each in windows for window in each]
        if not texts:
            return [None] * len(batch)
        rows, first = self._loaded().vectors(texts), 0
        found: list[Tensor | None] = []
        for each in windows:
            found.append(rows[first : first + len(each)] if each else None)
            first += len(each)
        return found

    def _windows(self, message: ToEncoder) -> list[list[int]]:
        if isinstance(message, Embed):
            return [message.token_ids]
        if isinstance(message, Judge) and (message.safety or message.topics):
            return self._loaded().pieces.windows(message.text)
        return []

    def _reply(self, message: ToEncoder, vectors: Tensor | None) -> FromEncoder:
        try:
            if isinstance(message, Prepare):
                return self._prepare(message)
            if isinstance(message, Judge):
                return self._judge(message, vectors)
            assert vectors is not None
            return Embedded(message.number, vectors[0, -1].numpy().astype("<f4").tobytes())
        except Exception as error:
            if not isinstance(error, DroplessError):
                logger.exception("could not answer a message")
            return _failed(message, error)

    def _judge(self, message: Judge, vectors: Tensor | None) -> Verdict:
        scores: dict[str, float] = {}
        unsafe: list[str] = []
        topic = None
        if vectors is not None and message.safety:
            safety = self._loaded().safety
            scores = safety.scores(vectors)
            unsafe = safety.unsafe(scores)
        if vectors is not None and message.topics:
            topic = self._loaded().topic(vectors, message.topics)
        injection = self._injection_score(message) if message.injection else None
        return Verdict(message.number, scores, unsafe, self._entities(message), topic, injection)

    def _injection_score(self, message: Judge) -> float:
        if self._injection is None:
            raise EncoderUnavailableError("the scorer of prompt injections is not loaded")
        return self._injection.score(message.text)

    def _entities(self, message: Judge) -> list[Entity]:
        if not message.entities:
            return []
        if self._pii is None:
            raise EncoderUnavailableError("the recognizers of personal data are not loaded")
        found = self._pii.find(message.text, message.entities)
        return [entity for entity in found if entity.end > message.start]

    def _prepare(self, message: Prepare) -> Prepared:
        needs = message.needs
        if needs.embeddings and self._embedder is None:
            assert message.model_folder is not None
            from dropless.encoder.embedder import Embedder

            self._embedder = Embedder(Path(message.model_folder), self._threads)
            self._embedder.vectors(self._embedder.pieces.encode(["warm up"]))
        if needs.pii and self._pii is None:
            from dropless.encoder.pii import PiiFinder

            self._pii = PiiFinder()
            self._pii.find("warm up: a@example.com", ("EMAIL_ADDRESS",))
        if needs.names and self._pii is not None:
            self._pii.load_names()
        if needs.injection and self._injection is None:
            from dropless.encoder.injection import InjectionScorer

            self._injection = InjectionScorer()
            self._injection.score("warm up")
        return Prepared(message.number)

    def _loaded(self) -> Embedder:
        if self._embedder is None:
            raise EncoderUnavailableError("the embedding model is not loaded")
        return self._embedder


def text_tokens(message: ToEncoder) -> int:
    """About how much work a message is."""
    if isinstance(message, Embed):
        return len(message.token_ids)
    return len(message.text) // 4 if isinstance(message, Judge) else 0


def _failed(message: ToEncoder, error: Exception) -> Failed:
    if isinstance(error, DroplessError):
        return Failed(message.number, str(error))
    return Failed(message.number, f"the encoder failed: {type(error).__name__}: {error}")
