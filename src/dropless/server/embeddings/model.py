"""The embedding model as an endpoint serves it: its text side here, its vectors elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dropless.checkpoints.catalogue import catalogue
from dropless.checkpoints.resolve import resolve
from dropless.encoder.client import EncoderClient
from dropless.encoder.word_pieces import MAX_TOKENS, WordPieces
from dropless.engine.client import State
from dropless.errors import ContextLengthError, InvalidRequestError

DIMENSIONS = 384

_LARGE_TEXTS = 4000  # characters; larger ones are encoded off the event loop
_STATES: dict[str, State] = {
    "off": "stopped",
    "starting": "starting",
    "ready": "serving",
    "failed": "failed",
}


def is_embedding_model(model: str) -> bool:
    """Whether a served entity's model is one that embeds."""
    entry = catalogue().get(model)
    return entry is not None and entry.kind == "embeddings"


class EmbeddingModel:
    """Blocks while it is made for as long as it takes to fetch the model's files.

    Raises:
        DroplessError: they cannot be fetched or read.
    """

    task = "llm/v1/embeddings"
    max_model_len = MAX_TOKENS

    def __init__(self, model: str, encoder: EncoderClient) -> None:
        self.model = model
        self._encoder = encoder
        self._pieces = WordPieces(resolve(model))

    @property
    def state(self) -> State:
        return _STATES[self._encoder.state]

    @property
    def detail(self) -> str:
        return self._encoder.detail

    @property
    def restarts(self) -> int:
        return self._encoder.restarts

    async def token_ids(self, inputs: Sequence[str | list[int]]) -> list[list[int]]:
        """The token ids of each input, with begin and end token.

        Raises:
            ContextLengthError: one has more than MAX_TOKENS.
            InvalidRequestError: one is empty, or has an id that is no token.
        """
        size = sum(len(text) for text in inputs if isinstance(text, str))
        if size <= _LARGE_TEXTS:
            return self._token_ids(inputs)
        return await asyncio.to_thread(self._token_ids, inputs)

    async def embed(self, texts: Sequence[list[int]]) -> list[bytes]:
        """Each text's vector: DIMENSIONS little-endian float32 numbers, of length 1.

        Raises:
            EncoderUnavailableError: it cannot be computed now.
        """
        return await self._encoder.embed(texts)

    def _token_ids(self, inputs: Sequence[str | list[int]]) -> list[list[int]]:
        encoded = iter(self._pieces.encode([text for text in inputs if isinstance(text, str)]))
        found = []
        for number, text in enumerate(inputs):
            where = f"input[{number}]" if len(inputs) > 1 else "input"
            if not text:
                raise InvalidRequestError(f"{where} is empty; leave it out", param="input")
            ids = next(encoded) if isinstance(text, str) else self._framed(text, where)
            if len(ids) > MAX_TOKENS:
                raise ContextLengthError(
                    f"{where} has {len(ids)} tokens, but {self.model} reads {MAX_TOKENS}; split it",
                    param="input",
                )
            found.append(ids)
        return found

    def _framed(self, ids: list[int], where: str) -> list[int]:
        """Token ids with begin and end token, where they lack them."""
        for token_id in (min(ids), max(ids)):
            if not 0 <= token_id < self._pieces.vocab_size:
                raise InvalidRequestError(
                    f"{where} has the token id {token_id}, which {self.model} does not know; its "
                    f"vocabulary ends at {self._pieces.vocab_size - 1}",
                    param="input",
                )
        begin = [] if ids[0] == self._pieces.begin_id else [self._pieces.begin_id]
        end = [] if ids[-1] == self._pieces.end_id else [self._pieces.end_id]
        return [*begin, *ids, *end]
