"""What a tokenizer file says, whatever its format, and how its tokens are spelled in bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tokenizers import Tokenizer as FastTokenizer

# How DBRX's messages are laid out when its files bring no template: no default system prompt.
CHATML = (
    "{% for message in messages %}{{ '' if loop.first else '\\n' }}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}{% endfor %}"
    "{{ '\\n<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
)
SPACE_MARK = "▁"  # how SentencePiece vocabularies write a space


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The parts of a tokenizer. `encode` gives the ids of ordinary text, control-token spellings
    included as text; `encode_after_control` does so for text that follows a control token, where
    some models add no leading space. `chat_template` is Jinja source, None if there is none."""

    pieces: list[bytes]  # by token id; b"" for control tokens and ids without a token
    control_tokens: dict[str, int]
    encode: Callable[[str], list[int]]
    encode_after_control: Callable[[str], list[int]]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    add_bos: bool
    leading_space: bool  # whether encoding puts a space before a text, and decoding drops it
    chat_template: str | None
    special_texts: dict[str, str]  # what templates call bos_token, eos_token ...


def ordinary_encoder(fast: FastTokenizer) -> Callable[[str], list[int]]:
    """Text to ids with control tokens spelled out like any other text."""
    fast.encode_special_tokens = True

    def encode(text: str) -> list[int]:
        # The batch call, unlike `encode`, lets other threads run, and computes no offsets.
        ids: list[int] = fast.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    return encode


def byte_level_piece(token: str) -> bytes:
    """The bytes of a token of a byte-level BPE, which writes each byte as one printable letter."""
    letters = _byte_of_letter()
    try:
        return bytes([letters[letter] for letter in token])
    except KeyError:  # an added token, stored as it reads
        return token.encode("utf-8")


def sentencepiece_piece(token: str) -> bytes:
    """The bytes of a SentencePiece token: `▁` is a space, `<0x0A>` a single byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE_MARK, " ").encode("utf-8")


@cache
def _byte_of_letter() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + i): byte for i, byte in enumerate(others)}
