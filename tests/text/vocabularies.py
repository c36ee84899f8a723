"""Small, real vocabularies for tests: every byte is a token, a few longer tokens beside them."""

from __future__ import annotations

from collections.abc import Sequence

from dropless.text.tokenizer import Tokenizer
from dropless.text.vocabulary import Vocabulary


def byte_tokenizer(
    control: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    extra: Sequence[bytes] = (),
    *,
    bos: str | None = None,
    eos: Sequence[str] | None = None,
    leading_space: bool = False,
) -> Tokenizer:
    """Bytes are ids 0 to 255, then the control tokens, then `extra` pieces (never encoded)."""
    ids = {text: 256 + i for i, text in enumerate(control)}

    def encode(text: str) -> list[int]:
        return list((b" " if leading_space else b"") + text.encode("utf-8"))

    ends = control[:1] if eos is None else eos
    return Tokenizer(
        Vocabulary(
            pieces=[bytes([byte]) for byte in range(256)] + [b""] * len(ids) + list(extra),
            control_tokens=ids,
            encode=encode,
            encode_after_control=encode,
            bos_token_id=None if bos is None else ids[bos],
            eos_token_ids=tuple(ids[text] for text in ends),
            add_bos=bos is not None,
            leading_space=leading_space,
            chat_template=None,
            special_texts={"bos_token": bos or control[0], "eos_token": control[-1]},
        )
    )
