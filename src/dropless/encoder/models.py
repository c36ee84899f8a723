"""What the encoder process has loaded, and how it answers a batch of messages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

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
from dropless.encoder.minilm import MiniLM
from dropless.encoder.safety import SafetyHead
from dropless.encoder.word_pieces import WordPieces
from dropless.errors import DroplessError, EncoderUnavailableError

if TYPE_CHECKING:
    from dropless.encoder.pii import PiiFinder

logger = logging.getLogger(__name__)


class _Embedder:
    """The embedding model and what reads its vectors."""

    def __init__(self, folder: Path) -> None:
        self.pieces = WordPieces(folder)
        self.model = MiniLM(folder)
        self.safety = SafetyHead()
        self._topics: dict[tuple[str, ...], Tensor] = {}  # by topics: [topics, hidden]

    def topic(self, windows: Tensor, topics: tuple[str, ...]) -> float:
        """The similarity of a text in windows [n, depths, hidden] to the nearest topic."""
        known = self._topics.get(topics)
        if known is None:
            known = self._topics[topics] = self.model(self.pieces.encode(topics))[:, -1]
        text = F.normalize(windows[:, -1].mean(0), dim=0)
        return float((known @ text).max())


class Models:
    """Loads what `Prepare` asks for; answers every message, whatever is wrong with it."""

    def __init__(self) -> None:
        self._embedder: _Embedder | None = None
        self._pii: PiiFinder | None = None

    def answer(self, batch: Sequence[ToEncoder]) -> list[FromEncoder]:
        """One reply for each message. All texts go through the embedding model together."""
        try:
            vectors = self._vectors(batch)
        except Exception as error:
            logger.exception("could not encode a batch of %d", len(batch))
            return [_failed(message, error) for message in batch]
        return [self._reply(*pair) for pair in zip(batch, vectors, strict=True)]

    def _vectors(self, batch: Sequence[ToEncoder]) -> list[Tensor | None]:
        """Of each message's windows [n, depths, hidden]; None where none are needed."""
        windows = [self._windows(message) for message in batch]
        texts = [window for each in windows for window in each]
        if not texts:
            return [None] * len(batch)
        sizes = [len(each) for each in windows if each]
        rows = iter(torch.split(self._loaded().model(texts), sizes))
        return [next(rows) if each else None for each in windows]

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
        return Verdict(message.number, scores, unsafe, self._entities(message), topic)

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
            self._embedder = _Embedder(Path(message.model_folder))
            self._embedder.model(self._embedder.pieces.encode(["warm up"]))
        if needs.pii and self._pii is None:
            # Late: the import alone takes seconds, and only who finds personal data needs it.
            from dropless.encoder.pii import PiiFinder

            self._pii = PiiFinder()
            self._pii.find("warm up: a@example.com", ("EMAIL_ADDRESS",))
        if needs.names and self._pii is not None:
            self._pii.load_names()
        return Prepared(message.number)

    def _loaded(self) -> _Embedder:
        if self._embedder is None:
            raise EncoderUnavailableError("the embedding model is not loaded")
        return self._embedder


def text_tokens(message: ToEncoder) -> int:
    """About how much work a message is."""
    if isinstance(message, Embed):
        return len(message.token_ids)
    return len(message.text) // 4 if isinstance(message, Judge) else 0


def set_threads(count: int) -> None:
    torch.set_num_threads(count)


def _failed(message: ToEncoder, error: Exception) -> Failed:
    if isinstance(error, DroplessError):
        return Failed(message.number, str(error))
    return Failed(message.number, f"the encoder failed: {type(error).__name__}: {error}")
