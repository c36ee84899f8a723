"""Text to the embedding model's token ids. No torch: the HTTP process counts tokens with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from dropless.errors import CheckpointError

# What the model was trained with; sentence-transformers cuts longer texts there.
MAX_TOKENS = 256


class WordPieces:
    """Encodes as sentence-transformers does, but cuts nothing."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError: the folder has no readable tokenizer of the BERT kind."""
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"cannot read {path}: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        begin, end = (self._tokenizer.token_to_id(text) for text in ("[CLS]", "[SEP]"))
        if begin is None or end is None:
            raise CheckpointError(f"{path} has no [CLS] and [SEP]: it is no BERT tokenizer")
        self.begin_id: int = begin
        self.end_id: int = end
        self.vocab_size: int = self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, with begin and end token."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def windows(self, text: str) -> list[list[int]]:
        """The text as one or several sequences that the model can read, none longer than
        MAX_TOKENS."""
        ids = self.encode([text])[0][1:-1]
        step = MAX_TOKENS - 2
        return [
            [self.begin_id, *ids[first : first + step], self.end_id]
            for first in range(0, max(1, len(ids)), step)
        ]
