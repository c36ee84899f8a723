"""Text to token ids and back. Encoding never yields a control token, whatever the text says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dropless.errors import CheckpointError
from dropless.text.gguf_vocab import load_gguf_vocabulary
from dropless.text.hf_vocab import load_hf_vocabulary
from dropless.text.tool_calls import CLOSE, OPEN
from dropless.text.vocabulary import CHATML, Vocabulary

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth")


class Tokenizer:
    """Encodes and decodes exactly as the model it belongs to was trained with.

    A token is some bytes; a text is the bytes of its tokens joined and read as UTF-8. Control
    tokens (begin, end, role marks) stand for no text, but for the marks of calls: only a chat
    template or the caller's own token ids bring them into a prompt.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._pieces = list(vocabulary.pieces)
        for mark in (OPEN, CLOSE):  # text of an answer, also where a prompt has a control token
            if mark in vocabulary.control_tokens:
                self._pieces[vocabulary.control_tokens[mark]] = mark.encode()
        self._control_texts = {i: text for text, i in vocabulary.control_tokens.items()}
        self.vocab_size = len(vocabulary.pieces)
        self.bos_token_id = vocabulary.bos_token_id
        self.eos_token_ids = vocabulary.eos_token_ids
        self.add_bos = vocabulary.add_bos
        self.control_tokens = vocabulary.control_tokens
        self.leading_space = vocabulary.leading_space
        self.chat_template = vocabulary.chat_template
        self.special_texts = vocabulary.special_texts

    def encode(self, text: str, *, add_bos: bool = False, after_control: bool = False) -> list[int]:
        """Token ids of `text`; spellings of control tokens in it are encoded as plain text.

        `after_control` says that a control token stands before this text, which changes the
        leading space of some models. Lone surrogates become U+FFFD. Bytes for which the
        vocabulary has no token are left out, as the model's own tokenizer does.
        """
        encode = self._vocabulary.encode_after_control if after_control else self._vocabulary.encode
        ids = encode(_valid_unicode(text)) if text else []
        if not self._control_texts.keys().isdisjoint(ids):  # an unknown-token mark
            ids = [i for i in ids if i not in self._control_texts]
        if add_bos and self.bos_token_id is not None:
            return [self.bos_token_id, *ids]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_control: bool = True) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD. Control tokens are left
        out, or written as they are spelled if `skip_control` is False."""
        parts = [
            self.token_bytes(i)
            if skip_control or i not in self._control_texts
            else self._control_texts[i].encode("utf-8")
            for i in token_ids
        ]
        data = b"".join(parts)
        if self.leading_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for: empty for control tokens, but for the marks of calls, and
        for ids without a token."""
        return self._pieces[token_id] if 0 <= token_id < self.vocab_size else b""

    def is_control(self, token_id: int) -> bool:
        return token_id in self._control_texts

    def unsampleable_ids(self, model_vocab_size: int) -> list[int]:
        """The ids below `model_vocab_size` that must never be sampled: no token has them."""
        holes = [
            i
            for i, piece in enumerate(self._pieces[:model_vocab_size])
            if not piece and i not in self._control_texts
        ]
        return holes + list(range(self.vocab_size, model_vocab_size))


class ByteTokenizer(Tokenizer):
    """256 bytes and ChatML's three control tokens, for generated weights without tokenizer."""

    def __init__(self) -> None:
        control = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}

        def encode(text: str) -> list[int]:
            return list(text.encode("utf-8"))

        super().__init__(
            Vocabulary(
                pieces=[bytes([byte]) for byte in range(256)] + [b""] * len(control),
                control_tokens=control,
                encode=encode,
                encode_after_control=encode,
                bos_token_id=256,
                eos_token_ids=(256, 258),
                add_bos=False,
                leading_space=False,
                chat_template=CHATML,
                special_texts={"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
            )
        )


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file or of a Hugging Face folder (tokenizer.json, or DBRX's
    tiktoken files). A folder with neither tokenizer nor weights describes a model whose weights
    are generated: it gets a `ByteTokenizer`.

    Raises:
        CheckpointError: the files are missing, damaged, or of a kind that is not supported.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return Tokenizer(load_gguf_vocabulary(path))
    if not path.is_dir():
        raise CheckpointError(f"{path} is neither a model folder nor a .gguf file")
    if _is_bare_config(path):
        return ByteTokenizer()
    return Tokenizer(load_hf_vocabulary(path))


def has_tokenizer(path: Path) -> bool:
    """Whether `load_tokenizer` has something to load: not for a folder of weights alone."""
    path = Path(path)
    return path.is_file() or _is_bare_config(path) or _has_tokenizer_files(path)


def _has_tokenizer_files(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))


def _is_bare_config(folder: Path) -> bool:
    return (
        (folder / "config.json").exists()
        and not _has_tokenizer_files(folder)
        and not any(next(folder.glob(pattern), None) for pattern in _WEIGHT_FILES)
    )


def _valid_unicode(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
